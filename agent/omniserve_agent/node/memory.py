"""Whether what is asked for fits the memory, and how much KV to take where nobody said. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from omniserve_agent.node.errors import NodeError

MIB = 1 << 20
GIB = 1 << 30
# Measured high-water marks with torch and transformers loaded, rounded up; a CUDA context adds
# its host-side part.
API_PROCESS_BYTES = 400 * MIB
CPU_ENGINE_PROCESS_BYTES = 700 * MIB
CUDA_ENGINE_PROCESS_BYTES = 2 * GIB
# What a CUDA engine keeps on the device beside weights and KV: context, workspaces, activations.
CUDA_WORKSPACE_BYTES = 2 * GIB
DEFAULT_CPU_DEVICE_KV_BYTES = 256 * MIB
LARGEST_DEFAULT_HOST_KV_BYTES = 2 * GIB


@dataclass(frozen=True)
class EngineDemand:
    """What one engine is known to need; KV sizes None: choose."""

    name: str
    model_bytes: int
    cuda_free_bytes: int | None = None  # None: the device is no GPU
    emulated: bool = False  # model and device KV take no memory
    device_kv_bytes: int | None = None
    host_kv_bytes: int | None = None


@dataclass(frozen=True)
class EngineMemory:
    """The KV sizes of one engine, in bytes."""

    device_kv_bytes: int
    host_kv_bytes: int


def allot(limit_bytes: int, demands: Sequence[EngineDemand]) -> tuple[EngineMemory, ...]:
    """KV sizes per engine such that everything fits `limit_bytes`; else NodeError with figures."""
    sizes = tuple(_sizes(limit_bytes, len(demands), demand) for demand in demands)
    parts = [("API process", API_PROCESS_BYTES)]
    for demand, size in zip(demands, sizes, strict=True):
        parts += _parts(demand, size)
    total = sum(part for _, part in parts)
    if total > limit_bytes:
        listed = ", ".join(f"{name} {in_mib(part)}" for name, part in parts)
        raise NodeError(
            f"memory: {in_mib(total)} wanted and {in_mib(limit_bytes)} there ({listed}); "
            "lower --host-kv or --device-kv, or raise the limit"
        )
    return sizes


def _sizes(limit_bytes: int, engines: int, demand: EngineDemand) -> EngineMemory:
    host = demand.host_kv_bytes
    if host is None:
        host = min(LARGEST_DEFAULT_HOST_KV_BYTES, limit_bytes // 5) // engines
    device = demand.device_kv_bytes
    if device is None and demand.cuda_free_bytes is None:
        device = DEFAULT_CPU_DEVICE_KV_BYTES
    elif demand.cuda_free_bytes is not None:
        device = _cuda_kv(demand, demand.cuda_free_bytes, device)
    return EngineMemory(device_kv_bytes=device or 0, host_kv_bytes=_whole_mib(host))


def _cuda_kv(demand: EngineDemand, free_bytes: int, wanted: int | None) -> int:
    room = free_bytes - demand.model_bytes - CUDA_WORKSPACE_BYTES
    size = room * 9 // 10 if wanted is None else wanted
    if size < MIB or size > room:
        raise NodeError(
            f"device memory of {demand.name}: {in_mib(free_bytes)} free, the model takes "
            f"{in_mib(demand.model_bytes)} and workspaces {in_mib(CUDA_WORKSPACE_BYTES)}, which "
            f"leaves {in_mib(max(0, room))} for KV; lower --device-kv or use a smaller model"
        )
    return _whole_mib(size)


def _parts(demand: EngineDemand, size: EngineMemory) -> list[tuple[str, int]]:
    """What an engine takes of the machine's own memory, by name."""
    if demand.cuda_free_bytes is not None or demand.emulated:
        cuda = demand.cuda_free_bytes is not None
        process = CUDA_ENGINE_PROCESS_BYTES if cuda else CPU_ENGINE_PROCESS_BYTES
        return [(f"{demand.name} host KV", size.host_kv_bytes), (f"{demand.name} process", process)]
    return [
        (f"{demand.name} host KV", size.host_kv_bytes),
        (f"{demand.name} device KV", size.device_kv_bytes),
        (f"{demand.name} model", demand.model_bytes),
        (f"{demand.name} process", CPU_ENGINE_PROCESS_BYTES),
    ]


def _whole_mib(size_bytes: int) -> int:
    return max(1, size_bytes // MIB) * MIB


def in_mib(size_bytes: int) -> str:
    """Bytes as whole MiB, rounded up, for messages."""
    return f"{-(-size_bytes // MIB)} MiB"
