"""Profiles a device in a child process, divided and configured as an engine would be."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from omniserve_agent.engine.measured import Measured
from omniserve_agent.engine.messages import EngineConfig
from omniserve_agent.node.assignments import Assignment, EngineKey
from omniserve_agent.node.capacity import read_capacity
from omniserve_agent.node.devices import holding, list_gpus, pick
from omniserve_agent.node.errors import NodeError
from omniserve_agent.node.model_store import ModelStore, model_bytes
from omniserve_agent.node.plan import PreparedEngine, plan_node, wanted_dtype
from omniserve_agent.node.process import end, ended_how, spawn
from omniserve_agent.settings import Settings

COMMAND = (sys.executable, "-m", "omniserve_agent.engine.profile")
Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Profiled:
    """What was found, and how the engine was configured."""

    config: EngineConfig
    measured: Measured


class _Line(msgspec.Struct):
    stage: str = ""
    fraction: float = 0.0
    profile: Measured | None = None
    error: str | None = None


async def profile(
    settings: Settings,
    key: EngineKey,
    progress: Progress,
    *,
    fresh: bool,
    command: Sequence[str] = COMMAND,
) -> Profiled:
    """The engine of `key` on this machine's device, as if there were no other. Raises NodeError."""
    config = await _engine_config(settings, key, progress)
    program = [*command, "--config", msgspec.json.encode(config).decode()]
    process = await spawn([*program, *(["--fresh"] if fresh else [])], stdout=PIPE)
    try:
        last = await _last_line(process, progress)
        code = await process.wait()
    finally:
        await end(process)
    if last.profile is None:
        raise NodeError(f"profiling {key.uri}: {last.error or ended_how(code)}")
    return Profiled(config, last.profile)


async def _last_line(process: Process, progress: Progress) -> _Line:
    """Report steps until the child's output ends; its last word."""
    last = _Line()
    async for text in process.stdout or asyncio.StreamReader():
        with contextlib.suppress(msgspec.DecodeError):  # libraries print to stdout too
            line = msgspec.json.decode(text, type=_Line)
            if line.stage:
                progress(line.stage, line.fraction)
            if line.profile is not None or line.error is not None:
                last = line
    return last


async def _engine_config(settings: Settings, key: EngineKey, progress: Progress) -> EngineConfig:
    (device,) = pick(settings.device, await list_gpus(settings.device), 1)
    store = ModelStore(settings.cache_dir, settings.allowed_packages, settings.model_roots)
    model_dir = await store.prepare(key.uri, progress)
    device = holding(device, model_dir)
    assignment = Assignment("profile", key, ())
    size = model_bytes(model_dir, wanted_dtype(settings, assignment))
    engine = PreparedEngine(assignment, model_dir, size, device)
    return plan_node(settings, [engine], read_capacity([device.numa_node])).configs[0]
