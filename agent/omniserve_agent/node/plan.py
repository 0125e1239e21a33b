"""From settings, models, devices and capacity to what each engine is told. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from omniserve_agent.engine.messages import EngineConfig
from omniserve_agent.node.assignments import Assignment
from omniserve_agent.node.capacity import Capacity
from omniserve_agent.node.cores import CoreWishes, Division, EngineCores, divide
from omniserve_agent.node.devices import Device
from omniserve_agent.node.errors import NodeError
from omniserve_agent.node.memory import EngineDemand, EngineMemory, allot
from omniserve_agent.settings import Settings

LS_PREFILL_ROWS = (128, 512)  # under fixed caps, and under the other policies
BE_PREFILL_ROWS = (48, 256)


@dataclass(frozen=True)
class PreparedEngine:
    """An engine to be, with its model on disk and its device."""

    assignment: Assignment
    model_dir: Path
    model_bytes: int
    device: Device


@dataclass(frozen=True)
class NodePlan:
    """One configuration per engine, in order, and the cores of everything else."""

    configs: tuple[EngineConfig, ...]
    http_cores: tuple[int, ...]
    warnings: tuple[str, ...]


def plan_node(
    settings: Settings, engines: Sequence[PreparedEngine], capacity: Capacity
) -> NodePlan:
    """What every engine is told; NodeError with figures where cores or memory lack."""
    if not engines:
        return NodePlan((), capacity.cores, ())
    division = plan_cores(settings, [engine.device for engine in engines], capacity)
    _refuse_shared_exclusive(engines, division)
    demands = [_demand(settings, engine) for engine in engines]
    memory = allot(capacity.memory_bytes, demands)
    configs = tuple(
        engine_config(settings, engine, cores, sizes)
        for engine, cores, sizes in zip(engines, division.engines, memory, strict=True)
    )
    return NodePlan(configs, division.http, division.warnings)


def plan_cores(settings: Settings, devices: Sequence[Device], capacity: Capacity) -> Division:
    """The cores alone, which can be refused before any model is prepared."""
    wishes = CoreWishes(
        device=settings.device_cores.cores if settings.device_cores else None,
        host=settings.host_cores.cores if settings.host_cores else None,
        share=settings.share_cores,
    )
    cuda = any(device.cuda for device in devices)
    emulated = any(device.emulated for device in devices)
    return divide(
        capacity.cores,
        len(devices),
        cuda=cuda,
        wishes=wishes,
        emulated=emulated,
        topology=capacity.topology,
        near=[device.numa_node for device in devices],
    )


def engine_config(
    settings: Settings, engine: PreparedEngine, cores: EngineCores, memory: EngineMemory
) -> EngineConfig:
    """What the engine process is told, but for its endpoints."""
    key = engine.assignment.key
    return EngineConfig(
        model_dir=str(engine.model_dir),
        device=engine.device.name,
        dtype=wanted_dtype(settings, engine.assignment),
        kv_cache_dtype=key.kv_cache_dtype,
        max_model_len=key.max_model_len,
        device_kv_bytes=memory.device_kv_bytes,
        host_kv_bytes=memory.host_kv_bytes,
        device_cores=list(cores.device),
        host_cores=list(cores.host),
        host_nodes=list(cores.host_nodes),
        host_workers=len(cores.host),
        host_batch_priority=cores.host_batch_priority,
        host_spin_us=cores.host_spin_us,
        slots=settings.slots,
        max_device_rows=settings.max_device_rows,
        join_lanes=settings.join_lanes,
        ls_prefill_rows=_rows(settings.ls_prefill_rows, settings, LS_PREFILL_ROWS),
        be_prefill_rows=_rows(settings.be_prefill_rows, settings, BE_PREFILL_ROWS),
        be_device_residency=settings.be_residency,
        max_waiting=settings.max_waiting,
        policy=settings.policy,
        admission=settings.admission,
        profile_dir=str(settings.cache_dir / "profiles"),
        drafts=settings.drafts,
        without=list(settings.without),
    )


def _rows(wanted: int | None, settings: Settings, defaults: tuple[int, int]) -> int:
    """Fixed caps are what an iteration holds; for a policy that predicts they only bound it."""
    fixed, predicting = defaults
    return wanted or (fixed if settings.policy == "fixed_caps" else predicting)


def wanted_dtype(settings: Settings, assignment: Assignment) -> str:
    """The manifest's dtype; where it leaves the choice, the flag's."""
    return settings.dtype if assignment.key.dtype == "auto" else assignment.key.dtype


def _demand(settings: Settings, engine: PreparedEngine) -> EngineDemand:
    return EngineDemand(
        name=engine.assignment.name,
        model_bytes=engine.model_bytes,
        cuda_free_bytes=engine.device.free_bytes,
        emulated=engine.device.emulated,
        device_kv_bytes=settings.device_kv_bytes or engine.device.kv_bytes,
        host_kv_bytes=settings.host_kv_bytes,
    )


def _refuse_shared_exclusive(engines: Sequence[PreparedEngine], division: Division) -> None:
    """An exclusive service has its own engine; cores shared between engines would undo that."""
    names = [engine.assignment.key.exclusive for engine in engines]
    exclusive = next((name for name in names if name), None)
    if exclusive and len(engines) > 1 and division.warnings:
        raise NodeError(
            f"LLMService {exclusive}: spec.placement.colocation: Exclusive cannot be kept with "
            f"{len(engines)} engines on shared cores; serve it alone or use Allowed"
        )
