"""Hardware profiles on disk: profiles/NAME.json of this package, or a file by its path.

A profile names the parts of a machine and its models. A model's times are measured (`latency`) or
follow from arithmetic over `device` (`hardware.py`). `omniserve-agent profile --out` writes such a
file of the machine it runs on.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

T = TypeVar("T")
Count = Annotated[int, Meta(ge=1)]
Positive = Annotated[float, Meta(gt=0)]
NotNegative = Annotated[float, Meta(ge=0)]
LINK_GBPS = 200.0  # of 25 GB/s: PCIe 4.0 × 16


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """An object of the file; a field that nobody knows is a mistake."""


class DeviceEntry(_Entry, frozen=True):
    """One accelerator; see `hardware.Device`."""

    memory_bytes: Positive
    read_bytes_per_s: Positive
    flops: Positive
    all_reduce_s: NotNegative
    link_bytes_per_s: Positive
    tile_rows: Count
    fixed_s: NotNegative
    host_link_bytes_per_s: Positive = LINK_GBPS / 8 * 1e9


class HostEntry(_Entry, frozen=True):
    """Host cores and memory. None: not known."""

    kv_gib: Positive
    read_gbps: Positive | None = None  # GB/s
    tflops: Positive | None = None


class ShapeEntry(_Entry, frozen=True):
    """See `hardware.ModelShape`."""

    layers: Count
    hidden: Count
    intermediate: Count
    q_heads: Count
    kv_heads: Count
    head_size: Count
    vocab: Count


class LatencyEntry(_Entry, frozen=True):
    """A measured `LatencyModel`."""

    rows: list[Count]
    dense_s: list[Positive]
    head_rows: list[Count]
    head_s: list[Positive]
    fixed: NotNegative = 0.0
    key: NotNegative = 0.0
    pair: NotNegative = 0.0
    join: NotNegative = 0.0
    host: NotNegative = 0.0

    def __post_init__(self) -> None:
        _check_curve("rows", self.rows, "dense_s", self.dense_s)
        _check_curve("head_rows", self.head_rows, "head_s", self.head_s)


def _check_curve(x: str, rows: Sequence[int], y: str, seconds: Sequence[float]) -> None:
    if len(rows) != len(seconds) or not rows:
        raise ValueError(
            f"`{x}` and `{y}` have {len(rows)} and {len(seconds)} values; "
            "write equally many, at least one"
        )
    wrong = next((pair for pair in pairwise(rows) if pair[0] >= pair[1]), None)
    if wrong:
        raise ValueError(f"`{x}` has {wrong[0]} before {wrong[1]}; row counts must ascend")


class ModelEntry(_Entry, frozen=True):
    """One engine of a model: `devices` of the profile's accelerators, or measured times."""

    shape: ShapeEntry
    engines: Count = 1
    devices: Count | None = None
    latency: LatencyEntry | None = None
    device_blocks: Count | None = None
    slots: Count | None = None  # limits of the engine; see `hardware.Hardware`
    max_device_rows: Count | None = None
    join_rows: Count | None = None
    noise: NotNegative = 0.0  # of an emulated iteration's time, standard deviation
    seed: int = 0
    link_gbps: Positive = LINK_GBPS  # Gbit/s between a measured or emulated device and its host

    def __post_init__(self) -> None:
        if self.latency is not None and self.device_blocks is None:
            raise ValueError("`latency` needs `device_blocks`: KV blocks of the device")
        if self.latency is None and self.devices is None:
            raise ValueError("give `latency`, or `devices`: how many of the profile's `device`")


class ProfileFile(_Entry, frozen=True):
    """See the module."""

    local_host: HostEntry
    models: dict[str, ModelEntry]
    description: str = ""
    measured_on: str = ""  # by `omniserve-agent profile`: the device, in words
    device: DeviceEntry | None = None
    cpu_host: HostEntry | None = None

    def __post_init__(self) -> None:
        if not self.models:
            raise ValueError("`models` is empty; describe at least one")
        derived = [name for name, entry in self.models.items() if entry.latency is None]
        if derived and self.device is None:
            raise ValueError(f"models.{derived[0]} has neither `latency` nor the profile `device`")


def load_profile(name: str) -> ProfileFile:
    """A profile by name, or by the path of a .json file. ValueError names the file and the field,
    or the profiles there are."""
    text = profile_path(name).read_bytes()
    try:
        data = msgspec.json.decode(text)
        models = data.get("models") if isinstance(data, dict) else None
        for model, entry in models.items() if isinstance(models, dict) else ():
            _convert(entry, ModelEntry, f"models.{model}: ")
        return _convert(data, ProfileFile, "")
    except (ValueError, OverflowError) as error:  # msgspec's errors are ValueErrors
        raise ValueError(f"{name}: {error}") from error


def _convert(data: object, kind: type[T], where: str) -> T:
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        raise ValueError(f"{where}{error}") from error


def profile_path(name: str) -> Path:
    """Where a profile is. ValueError names the choices."""
    folder = Path(str(resources.files("omniserve_agent.simulation"))) / "profiles"
    path = Path(name) if name.endswith(".json") else folder / f"{name}.json"
    if not path.is_file():
        names = sorted(p.name.removesuffix(".json") for p in folder.iterdir())
        raise ValueError(
            f"{name!r} is unknown; use {', '.join(names)}, or the path of a .json file"
        )
    return path


def encode_profile(profile: ProfileFile) -> str:
    """As `load_profile` reads it."""
    return msgspec.json.format(msgspec.json.encode(profile), indent=2).decode() + "\n"
