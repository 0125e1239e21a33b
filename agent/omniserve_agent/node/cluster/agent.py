"""The agent in a cluster from start to end: find out what is here, keep up with the ServingNode,
serve, report, drain."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog
import zmq.asyncio
from pydantic import ValidationError

from omniserve_agent.http.app import make_state
from omniserve_agent.http.server import Server, start
from omniserve_agent.http.settings import HttpSettings
from omniserve_agent.node.agent import Programs
from omniserve_agent.node.backoff import RestartPolicy
from omniserve_agent.node.capacity import Capacity, read_capacity
from omniserve_agent.node.cluster.admin import AdminView, admin_app
from omniserve_agent.node.cluster.api import NodeApi
from omniserve_agent.node.cluster.assigned import ambiguities
from omniserve_agent.node.cluster.certificate import Certificate
from omniserve_agent.node.cluster.door import Listening
from omniserve_agent.node.cluster.engine_unit import RESTS, EngineTools
from omniserve_agent.node.cluster.executor import Executor, node_registry
from omniserve_agent.node.cluster.figures import rfc3339
from omniserve_agent.node.cluster.keys import KeyRing
from omniserve_agent.node.cluster.model_cache import ModelCache
from omniserve_agent.node.cluster.node_memory import NodeMemory
from omniserve_agent.node.cluster.reporter import NodeFacts, Reporter
from omniserve_agent.node.cluster.settings import NodeSettings
from omniserve_agent.node.cluster.shares import FoundDevice, Shares, share_out
from omniserve_agent.node.cluster.watch import NodeWatch, WatchPolicy
from omniserve_agent.node.devices import list_gpus
from omniserve_agent.node.errors import NodeError
from omniserve_agent.node.model_store import ModelStore
from omniserve_agent.node.review import review_environment
from omniserve_agent.node.signals import Signals, pinned, say_draining, signals
from omniserve_agent.node.supervisor import Supervision
from omniserve_crds.conditions import ConditionStatus
from omniserve_crds.servingnode import ServingNodeSpec
from omniserve_crds.status import Condition
from omniserve_crds.violations import violations

LAST_WRITE_S = 5.0  # a pod has only so long to end


@dataclass(frozen=True)
class Patience:
    """How the agent waits; tests bring their own."""

    watch: WatchPolicy = field(default_factory=WatchPolicy)
    supervision: Supervision = field(default_factory=Supervision)
    rests: RestartPolicy = RESTS


class ClusterAgent:
    """The parts of one node's agent, wired."""

    def __init__(
        self,
        settings: NodeSettings,
        api: NodeApi,
        shares: Shares,
        tools: EngineTools,
        patience: Patience,
        came: Signals,
    ) -> None:
        engine = settings.engine
        origins = HttpSettings(cors_origins=engine.cors_origins)
        http = make_state(node_registry(), settings=origins)
        self.keys = KeyRing(api, lambda: self.executor.wake())
        self.certificate = Certificate(settings.tls_dir) if settings.tls_dir else None
        tls = self.certificate.context if self.certificate else None
        listening = Listening(engine.host, engine.drain_grace_s, tls, came.at_once)
        self.executor = Executor(shares, tools, http, self.keys, listening)
        self.watch = NodeWatch(
            api, self._object_changed, lambda: self.reporter.pacing.hurry(), patience.watch
        )
        facts = NodeFacts(
            address=engine.host,
            admin_port=settings.admin_port,
            template=settings.template,
            model_volumes=tuple(sorted(settings.model_volumes)),
        )
        self.reporter = Reporter(api, self.executor, facts, self.watch.take, time.monotonic)
        self._grace_s = engine.drain_grace_s
        self._came = came
        self._draining = False

    @property
    def not_ready(self) -> str | None:
        """Why the node is not ready, or None. Devices and cores were checked before the start."""
        if self._draining:
            return "draining: the agent is stopping"
        if self.watch.current is None:
            return "the ServingNode has not been seen yet; the operator makes it"
        return "draining: spec.drain is set" if self.executor.spec.drain else None

    async def run(self) -> None:
        """Until a signal, or until a part of this fails; then every request is drained and every
        engine ended."""
        acting = [asyncio.create_task(part.run()) for part in (self.executor, self.watch)]
        serving = [asyncio.create_task(part.run()) for part in (self.keys, self.reporter)]
        if self.certificate is not None:
            serving.append(asyncio.create_task(self.certificate.run()))
        stopped = asyncio.create_task(self._came.stop.wait())
        await asyncio.wait({*acting, *serving, stopped}, return_when=asyncio.FIRST_COMPLETED)
        self._draining = True
        failures = await _ended(acting)
        say_draining(sum(door.state.in_flight for door in self.executor.doors), self._grace_s)
        await self.executor.drain()
        failures += await _ended([*serving, stopped])
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_WRITE_S):
                await self.reporter.write_if_due()
        await self.executor.end()
        self.executor.http.tokenizing.close()
        if failures:
            raise failures[0]

    def _object_changed(self) -> None:
        """Another spec is in force, or none."""
        seen = self.watch.current
        self.reporter.pacing.hurry()
        if seen is None:
            self.executor.apply(ServingNodeSpec())
            self.reporter.observed_generation = 0
            return
        try:
            spec = ServingNodeSpec.model_validate(seen.spec)
        except ValidationError as error:
            self._refuse_spec(seen.generation, error)
            return
        structlog.get_logger().info("spec", generation=seen.generation, engines=len(spec.engines))
        for line in ambiguities(spec):
            structlog.get_logger().warning("ambiguous spec", reason=line)
        self.reporter.conditions = ()
        self.reporter.observed_generation = seen.generation
        self.executor.apply(spec)

    def _refuse_spec(self, generation: int, error: ValidationError) -> None:
        """The last good spec stays in force, and the status says so."""
        message = "; ".join(violations(ServingNodeSpec, error))[:1024]
        structlog.get_logger().error("spec not understood", generation=generation, reason=message)
        self.reporter.observed_generation = max(1, self.reporter.observed_generation)
        self.reporter.conditions = (
            Condition(
                type="SpecApplied",
                status=ConditionStatus.FALSE,
                observed_generation=generation,
                reason="NotUnderstood",
                message=f"generation {generation}: {message}",
                last_transition_time=rfc3339(datetime.now(UTC)),
            ),
        )


async def serve_node(
    settings: NodeSettings,
    api: NodeApi,
    programs: Programs | None = None,
    patience: Patience | None = None,
) -> None:
    """Serve what the node's object wants until SIGTERM or SIGINT.

    Raises NodeError for what cannot be done here at all.
    """
    review_environment()
    patience, gpus = patience or Patience(), await _gpus(settings)
    capacity = read_capacity([gpu.numa_node for gpu in gpus])
    shares = share_out(settings.engine, gpus, capacity)
    for warning in shares.division.warnings:
        structlog.get_logger().warning(warning)
    context = zmq.asyncio.Context()
    with (
        signals() as came,
        tempfile.TemporaryDirectory(prefix="omniserve-") as directory,
        pinned(shares.division.http),
    ):
        tools = _tools(settings, api, capacity, context, Path(directory), programs, patience)
        agent = ClusterAgent(settings, api, shares, tools, patience, came)
        try:
            async with _admin(settings, agent):
                await agent.run()
        finally:
            context.destroy(linger=0)


async def _gpus(settings: NodeSettings) -> list[FoundDevice]:
    """Those that are here and wanted; NodeError where there is none and one is wanted."""
    wanted = settings.engine.device
    if wanted.startswith("emulated:"):
        raise NodeError(f"--device {wanted}: for experiments with `serve`; use auto, cpu or cuda")
    found = [
        FoundDevice(f"cuda:{index}", gpu.name, gpu.total_bytes, gpu.free_bytes, gpu.numa_node)
        for index, gpu in enumerate(await list_gpus(wanted))
    ]
    if wanted.startswith("cuda:"):
        found = [device for device in found if device.id == f"cuda:{int(wanted[5:])}"]
    if wanted.startswith("cuda") and not found:
        raise NodeError(f"--device {wanted}: no such CUDA device was found here; use auto or cpu")
    return found


def _tools(
    settings: NodeSettings,
    api: NodeApi,
    capacity: Capacity,
    context: zmq.asyncio.Context,
    directory: Path,
    programs: Programs | None,
    patience: Patience,
) -> EngineTools:
    programs, engine = programs or Programs(), settings.engine
    store = ModelStore(
        engine.cache_dir,
        engine.allowed_packages,
        engine.model_roots,
        volumes=settings.model_volumes,
        hub=True,
        command=programs.prepare,
    )
    return EngineTools(
        settings=engine,
        cache=ModelCache(store, settings.cache_bytes),
        memory=NodeMemory(capacity.memory_bytes),
        context=context,
        directory=directory,
        cores=capacity.cores,
        read_secret=api.read_secret,
        command=programs.engine,
        supervision=patience.supervision,
        rests=patience.rests,
    )


@contextlib.asynccontextmanager
async def _admin(settings: NodeSettings, agent: ClusterAgent) -> AsyncIterator[Server]:
    """The admin port; NodeError where it cannot be had."""
    view = AdminView(agent.executor, lambda: agent.not_ready)
    host, port = settings.engine.host, settings.admin_port
    try:
        server = await start(admin_app(view), host, port)
    except OSError as error:
        raise NodeError(
            f"--admin-port {port}: {error.strerror} on {host}; choose another port or --host"
        ) from error
    try:
        yield server
    finally:
        await server.stop(0.0)


async def _ended(tasks: Sequence[asyncio.Task[Any]]) -> list[Exception]:
    """Cancel the tasks and wait; what they failed of."""
    for task in tasks:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    return [result for result in results if isinstance(result, Exception)]
