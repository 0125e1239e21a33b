"""What is simulated on: a model on a device with its hosts, as plain figures.

A profile (`profile_file.py`) names the parts; `Hardware` is what they come to. Times follow from
arithmetic where nothing was measured:

    dense(rows) of a layer = 2 all-reduces
        + max(weight bytes / memory rate, 2 · parameters · tile(rows) / FLOP rate)

The FLOP and memory rates are what kernels sustain, not what data sheets promise.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import msgspec

from omniserve_agent.scheduling.latency import FEATURES, Curve, LatencyModel
from omniserve_agent.simulation.profile_file import (
    LINK_GBPS,
    HostEntry,
    LatencyEntry,
    ModelEntry,
    ProfileFile,
    load_profile,
)

BLOCK_TOKENS = 16
LIMITS = ("slots", "max_device_rows", "join_rows")
CURVE_ROWS = (1, 8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096)


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A dense transformer; two-byte weights and KV."""

    name: str
    layers: int
    hidden: int
    intermediate: int
    q_heads: int
    kv_heads: int
    head_size: int
    vocab: int

    @property
    def layer_parameters(self) -> int:
        """Weights of one layer: QKV, output projection, gated MLP."""
        attention = self.hidden * self.head_size * 2 * (self.q_heads + self.kv_heads)
        return attention + 3 * self.hidden * self.intermediate

    @property
    def weight_bytes(self) -> int:
        """All layers, embedding and head."""
        return 2 * (self.layers * self.layer_parameters + 2 * self.vocab * self.hidden)

    @property
    def kv_bytes(self) -> int:
        """Of one token, all layers."""
        return 4 * self.layers * self.kv_heads * self.head_size

    @property
    def hop_bytes_there(self) -> int:
        """q, k and v of one row at one layer: what crosses to a host."""
        return 2 * (self.q_heads + 2 * self.kv_heads) * self.head_size

    @property
    def hop_bytes_back(self) -> int:
        """o of one row at one layer: what comes back."""
        return 2 * self.q_heads * self.head_size


@dataclass(frozen=True, slots=True)
class HostPool:
    """Cores and memory that attend offloaded rows; without a link: the device's own host."""

    read_bytes_per_s: float
    kv_bytes: float
    flops: float  # 0: not known
    link_bytes_per_s: float | None = None  # each way
    link_latency_s: float = 20e-6


@dataclass(frozen=True, slots=True)
class Hardware:
    """One engine's share of everything."""

    name: str
    model: ModelShape
    latency: LatencyModel
    device_blocks: int
    hosts: tuple[HostPool, ...]
    slots: int = 4096
    max_device_rows: int = 512
    join_rows: int = 128
    noise: float = 0.03  # of an iteration's time, standard deviation
    copy_bytes_per_s: float = LINK_GBPS / 8 * 1e9  # KV between device and own host, each way
    engines: int = 1  # how many such engines the whole machine holds
    measured_on: str = ""  # a device in words; empty: not by `omniserve-agent profile`

    @property
    def host_blocks(self) -> int:
        """KV blocks over all hosts."""
        return int(sum(h.kv_bytes for h in self.hosts) / (self.model.kv_bytes * BLOCK_TOKENS))

    @property
    def host_bytes_per_s(self) -> float:
        """What all hosts read together."""
        return sum(h.read_bytes_per_s for h in self.hosts)


@dataclass(frozen=True, slots=True)
class Device:
    """Accelerators that run one engine together (tensor parallel)."""

    count: int
    memory_bytes: float  # of one
    read_bytes_per_s: float
    flops: float
    all_reduce_s: float  # of few rows; 0 for one device
    link_bytes_per_s: float  # between the devices
    host_link_bytes_per_s: float  # between one of them and its host, each way
    tile_rows: int
    fixed_s: float  # of an iteration: launch, sampling, the loop


class HardwareError(ValueError):
    """What was asked of a profile cannot be had; `argument` of `hardware` says which."""

    def __init__(self, argument: str, message: str) -> None:
        super().__init__(f"{argument}: {message}")
        self.argument, self.message = argument, message


def hardware(
    profile: str,
    model: str | None = None,
    cpu_hosts: int = 0,
    network_gbps: float = 100.0,
    host_read_gbps: float | None = None,
    host_tflops: float | None = None,
) -> Hardware:
    """One engine of a profile with `cpu_hosts` further hosts behind a network. HardwareError.

    Without `model` it is the profile's last. Where a profile holds several engines, each gets its
    share of host and network. `host_*`: the device's own host's, instead of the profile's.
    """
    data = _loaded(profile)
    name, entry = _model(data, profile, model)
    shape = ModelShape(name=name, **msgspec.structs.asdict(entry.shape))
    latency, blocks = _device(data, entry, shape)
    own = msgspec.structs.replace(
        data.local_host,
        read_gbps=host_read_gbps or data.local_host.read_gbps,
        tflops=host_tflops or data.local_host.tflops,
    )
    hosts = [_host(own, profile, entry.engines, None)]
    if cpu_hosts:
        if data.cpu_host is None:
            raise HardwareError(
                "cpu_hosts", f"{cpu_hosts} wanted, but profile {profile} has no `cpu_host`; use 0"
            )
        network = network_gbps * 1e9 / 8 / entry.engines
        hosts += [_host(data.cpu_host, profile, entry.engines, network)] * cpu_hosts
    found = Hardware(profile, shape, latency, blocks, tuple(hosts), engines=entry.engines)
    found = replace(found, copy_bytes_per_s=_copy_rate(data, entry))
    limits = {name: getattr(entry, name) for name in LIMITS if getattr(entry, name) is not None}
    return replace(found, measured_on=data.measured_on, **limits)


def _loaded(profile: str) -> ProfileFile:
    try:
        return load_profile(profile)
    except (ValueError, OSError) as error:
        raise HardwareError("profile", str(error)) from error


def _model(data: ProfileFile, profile: str, model: str | None) -> tuple[str, ModelEntry]:
    name = list(data.models)[-1] if model is None else model
    if name not in data.models:
        known = ", ".join(data.models)
        raise HardwareError("model", f"{name!r} is unknown; profile {profile} has {known}")
    return name, data.models[name]


def _host(data: HostEntry, profile: str, engines: int, link: float | None) -> HostPool:
    if data.read_gbps is None:
        raise HardwareError(
            "host_read_gbps", f"profile {profile} does not say how fast hosts read KV; give GB/s"
        )
    return HostPool(
        data.read_gbps * 1e9 / engines,
        data.kv_gib * 2**30 / engines,
        (data.tflops or 0.0) * 1e12 / engines,
        link,
    )


def _device(data: ProfileFile, entry: ModelEntry, shape: ModelShape) -> tuple[LatencyModel, int]:
    """Its times, and the KV blocks that it holds."""
    if entry.latency is not None and entry.device_blocks is not None:
        return _measured(shape, entry.latency), entry.device_blocks
    if entry.devices is None or data.device is None:
        raise HardwareError("model", f"{shape.name} has neither `latency` nor `devices`")
    device = Device(count=entry.devices, **msgspec.structs.asdict(data.device))
    blocks = device_blocks(shape, device)
    if blocks < 1:
        raise HardwareError("model", f"{shape.name} leaves no room for KV on {device}")
    return derived(shape, device), blocks


def _copy_rate(data: ProfileFile, entry: ModelEntry) -> float:
    """Of KV between the tiers: every device has its share of it behind a link of its own."""
    if data.device is None or entry.devices is None:
        return entry.link_gbps * 1e9 / 8
    return entry.devices * data.device.host_link_bytes_per_s


def _measured(shape: ModelShape, data: LatencyEntry) -> LatencyModel:
    dense = Curve(tuple(data.rows), tuple(data.dense_s))
    head = Curve(tuple(data.head_rows), tuple(data.head_s))
    return LatencyModel(
        shape.layers, dense, head, **{name: getattr(data, name) for name in FEATURES}
    )


def derived(shape: ModelShape, device: Device) -> LatencyModel:
    """A latency model from arithmetic; see the module."""
    read, flops = device.count * device.read_bytes_per_s, device.count * device.flops

    def reduce_s(rows: int) -> float:
        if device.count == 1:
            return 0.0
        moved = 2 * rows * shape.hidden * 2 * (device.count - 1) / device.count
        return device.all_reduce_s + moved / device.link_bytes_per_s

    def dense_s(rows: int) -> float:
        tiles = -(-rows // device.tile_rows) * device.tile_rows
        compute = 2 * shape.layer_parameters * tiles / flops
        return max(2 * shape.layer_parameters / read, compute) + 2 * reduce_s(rows)

    def head_s(rows: int) -> float:
        parameters = shape.vocab * shape.hidden
        return max(2 * parameters / read, 2 * parameters * rows / flops)

    per_key = 4 * shape.kv_heads * shape.head_size / read
    per_pair = 4 * shape.q_heads * shape.head_size / flops
    rows = CURVE_ROWS
    return LatencyModel(
        shape.layers,
        Curve(rows, tuple(dense_s(n) for n in rows)),
        Curve(rows, tuple(head_s(n) for n in rows)),
        fixed=device.fixed_s,
        key=per_key,
        pair=per_pair,
        join=2e-8,
    )


def device_blocks(shape: ModelShape, device: Device, utilisation: float = 0.9) -> int:
    """KV blocks that fit beside the weights and 4 GiB of temporaries per device."""
    free = device.count * (device.memory_bytes * utilisation - 4 * 2**30) - shape.weight_bytes
    return int(free / (shape.kv_bytes * BLOCK_TOKENS))
