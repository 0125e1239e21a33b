"""What of an `EngineConfig` can be wrong before anything is loaded. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator

from omniserve_agent.engine.messages import SWITCHABLE, EngineConfig
from omniserve_agent.scheduling.admission import AdmissionMode
from omniserve_agent.scheduling.policies import POLICIES
from omniserve_agent.simulation.emulated import check_profile, profile_name

POSITIVE = (
    "device_kv_bytes",
    "host_kv_bytes",
    "host_workers",
    "slots",
    "max_device_rows",
    "join_lanes",
    "ls_prefill_rows",
    "be_prefill_rows",
    "max_waiting",
    "stats_interval_s",
)

CHOICES: dict[str, tuple[object, ...]] = {
    "kv_cache_dtype": ("auto", "int8"),
    "attention": ("auto", "native", "torch"),
    "pipeline_depth": (None, 0, 1),
    "drafts": ("off", "prompt_lookup"),
    "policy": tuple(POLICIES),
    "admission": tuple(str(mode) for mode in AdmissionMode),
}


def problem(config: EngineConfig) -> str | None:
    """The first bad value, in one line that says what would be right; None: there is none."""
    for name in POSITIVE:
        if getattr(config, name) <= 0:
            return f"{name} is {getattr(config, name)}; it must be positive"
    if config.host_spin_us < 0:
        return f"host_spin_us is {config.host_spin_us}; it must be 0 or more"
    if config.max_model_len is not None and config.max_model_len < 2:
        return f"max_model_len is {config.max_model_len}; it must be at least 2"
    if not re.fullmatch(r"cpu|cuda(:\d+)?|emulated:.+", config.device):
        return f"device is {config.device!r}; it must be cpu, cuda or cuda:N, or emulated:PROFILE"
    if config.attention == "native" and config.device != "cpu":
        return f"attention is native and device is {config.device}; native attention needs cpu"
    return next(_bad_choices(config), None) or _bad_profile(config.device)


def _bad_profile(device: str) -> str | None:
    if profile_name(device) is None:
        return None
    try:
        check_profile(device)
    except ValueError as error:
        return f"device is {device!r}: {error}"
    return None


def _bad_choices(config: EngineConfig) -> Iterator[str]:
    for name, values in CHOICES.items():
        value = getattr(config, name)
        if value not in values:
            yield f"{name} is {value!r}; use {', '.join(str(one) for one in values)}"
    for feature in config.without:
        if feature not in SWITCHABLE:
            yield f"without has {feature!r}; use some of {', '.join(SWITCHABLE)}"
