"""The standalone agent from start to end: read, prepare, plan, start, serve, drain."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
import zmq.asyncio

from omniserve_agent.http.app import make_app
from omniserve_agent.http.server import FAREWELL_S
from omniserve_agent.http.settings import HttpSettings
from omniserve_agent.http.state import STATE
from omniserve_agent.node.assignments import Assignment, assign
from omniserve_agent.node.capacity import Capacity, read_capacity
from omniserve_agent.node.devices import Device, holding, list_gpus, pick
from omniserve_agent.node.engine_client import EngineClient
from omniserve_agent.node.errors import EngineFailedError, NodeError
from omniserve_agent.node.listeners import Ports, listening, reserved
from omniserve_agent.node.locality import cores_line
from omniserve_agent.node.model_store import PREPARE_COMMAND, ModelStore, model_bytes
from omniserve_agent.node.plan import (
    NodePlan,
    PreparedEngine,
    plan_cores,
    plan_node,
    wanted_dtype,
)
from omniserve_agent.node.progress import ProgressLog, announce
from omniserve_agent.node.review import review, review_environment
from omniserve_agent.node.secrets import api_keys
from omniserve_agent.node.services import served_services
from omniserve_agent.node.signals import Signals, pinned, say_draining, signals
from omniserve_agent.node.supervisor import ENGINE_COMMAND, Supervision, Supervisor
from omniserve_agent.settings import Settings
from omniserve_crds.manifests import ManifestError, load_manifests


@dataclass(frozen=True)
class Programs:
    """What the agent starts; tests bring their own."""

    engine: Sequence[str] = ENGINE_COMMAND
    prepare: Sequence[str] = PREPARE_COMMAND


@dataclass(frozen=True)
class _Wanted:
    """What the manifests and the command line ask for, checked as far as reading goes."""

    assignments: tuple[Assignment, ...]
    keys: dict[str, frozenset[str]]  # by service key
    capacity: Capacity
    devices: dict[str, Device]  # by engine name, wanted engines only


async def serve(settings: Settings, programs: Programs | None = None) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises NodeError for what cannot be done here, EngineFailedError when every engine is given up.
    """
    review_environment()
    programs = programs or Programs()
    holding = reserved(settings.host, settings.port, settings.admin_port)
    with signals() as came, holding as (ports, held):
        wanted = await _gather(settings)
        engines = await _prepare(settings, wanted, programs, came.stop)
        if came.stop.is_set():
            return
        running = [engine for engine in engines if engine.assignment.wanted]
        plan = plan_node(settings, running, wanted.capacity)
        _warn(plan.warnings)
        for engine, config in zip(running, plan.configs, strict=True):
            structlog.get_logger().info(cores_line(config), engine=engine.assignment.name)
        held.close()
        with pinned(plan.http_cores):
            await _serve_plan(settings, wanted, engines, plan, programs, ports, came)


async def _gather(settings: Settings) -> _Wanted:
    """Read manifests, keys and machine; refuse what can be refused before models are prepared."""
    try:
        services = load_manifests(settings.files)
    except ManifestError as error:
        raise NodeError(error.line) from error
    _warn(review(services, settings.policy))
    keys = {service.key: api_keys(service, settings.secrets_dir) for service in services}
    assignments = assign(services)
    running = [assignment.name for assignment in assignments if assignment.wanted]
    gpus = await list_gpus(settings.device) if running else []
    devices = pick(settings.device, gpus, len(running))
    capacity = read_capacity([device.numa_node for device in devices])
    if devices:
        plan_cores(settings, devices, capacity)
    return _Wanted(assignments, keys, capacity, dict(zip(running, devices, strict=True)))


async def _prepare(
    settings: Settings, wanted: _Wanted, programs: Programs, stop: asyncio.Event
) -> list[PreparedEngine]:
    """Every engine's model on disk, one after the other; cut short by `stop`."""
    store = ModelStore(
        settings.cache_dir,
        settings.allowed_packages,
        settings.model_roots,
        command=programs.prepare,
    )
    stopped = asyncio.ensure_future(stop.wait())
    engines: list[PreparedEngine] = []
    for assignment in wanted.assignments:
        log = ProgressLog(assignment.key.uri)
        task = asyncio.ensure_future(store.prepare(assignment.key.uri, log.step))
        await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
            break
        model_dir = task.result()
        size = model_bytes(model_dir, wanted_dtype(settings, assignment))
        device = holding(wanted.devices.get(assignment.name, Device("cpu")), model_dir)
        engines.append(PreparedEngine(assignment, model_dir, size, device))
    stopped.cancel()
    return engines


async def _serve_plan(
    settings: Settings,
    wanted: _Wanted,
    engines: Sequence[PreparedEngine],
    plan: NodePlan,
    programs: Programs,
    ports: Ports,
    came: Signals,
) -> None:
    """Start engines and HTTP, serve, and take everything down again."""
    clients = {
        engine.assignment.name: EngineClient(
            engine.assignment.name,
            max_replays=settings.be_retries,
            max_waiting=settings.max_waiting,
        )
        for engine in engines
    }
    running = [clients[engine.assignment.name] for engine in engines if engine.assignment.wanted]
    services = served_services(engines, clients, wanted.keys)
    app = make_app(services, settings=HttpSettings(cors_origins=settings.cors_origins))
    async with (
        _supervised(running, plan, programs, wanted.capacity, came.at_once) as supervisors,
        listening(app, ports, settings.drain_grace_s, came.at_once),
    ):
        announcing = asyncio.create_task(announce(services, ports.url))
        try:
            await _until_stop(supervisors, came.stop)
        finally:
            announcing.cancel()
        say_draining(app[STATE].in_flight, settings.drain_grace_s)


@contextlib.asynccontextmanager
async def _supervised(
    clients: Sequence[EngineClient],
    plan: NodePlan,
    programs: Programs,
    capacity: Capacity,
    at_once: asyncio.Event,
) -> AsyncIterator[dict[asyncio.Task[None], Supervisor]]:
    """Supervisors of every engine, by their tasks; engines are stopped on the way out, and killed
    where they do not heed that soon after `at_once`."""
    context = zmq.asyncio.Context()
    with tempfile.TemporaryDirectory(prefix="omniserve-") as directory:
        supervisors = {}
        for client, config in zip(clients, plan.configs, strict=True):
            supervisor = Supervisor(
                client,
                config,
                context,
                Path(directory),
                cores=capacity.cores,
                command=programs.engine,
                supervision=Supervision(),
            )
            supervisors[asyncio.create_task(supervisor.run())] = supervisor
        try:
            yield supervisors
        finally:
            for supervisor in supervisors.values():
                supervisor.stop()
            await _ended(supervisors, at_once)
            context.destroy(linger=0)


async def _ended(tasks: Collection[asyncio.Task[None]], at_once: asyncio.Event) -> None:
    """Wait for the tasks; `FAREWELL_S` after `at_once` cancel them, which kills their engines."""
    hurrying = asyncio.create_task(at_once.wait())
    ending = asyncio.gather(*tasks, return_exceptions=True)
    waits: set[asyncio.Future[Any]] = {ending, hurrying}
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    hurrying.cancel()
    await asyncio.wait({ending}, timeout=FAREWELL_S)
    for task in tasks:
        task.cancel()
    await ending


async def _until_stop(
    supervisors: dict[asyncio.Task[None], Supervisor], stop: asyncio.Event
) -> None:
    """Wait for `stop`; EngineFailedError when no engine is left."""
    stopped = asyncio.ensure_future(stop.wait())
    pending = set(supervisors)
    try:
        while not stopped.done():
            await asyncio.wait({stopped, *pending}, return_when=asyncio.FIRST_COMPLETED)
            for task in [task for task in pending if task.done()]:
                _report_failure(task, supervisors[task])
                pending.discard(task)
            if supervisors and not pending:
                raise EngineFailedError(_failure_line(supervisors))
    finally:
        stopped.cancel()


def _report_failure(task: asyncio.Task[None], supervisor: Supervisor) -> None:
    if task.exception() is not None and supervisor.failure is None:
        supervisor.failure = f"its supervisor failed: {task.exception()!r}"
    structlog.get_logger().error(
        "engine given up", engine=supervisor.client.name, reason=supervisor.failure
    )


def _failure_line(supervisors: dict[asyncio.Task[None], Supervisor]) -> str:
    return "; ".join(
        f"engine {supervisor.client.name}: {supervisor.failure}"
        for supervisor in supervisors.values()
    )


def _warn(lines: Sequence[str]) -> None:
    for line in lines:
        structlog.get_logger().warning(line)
