"""One assigned engine from its model to its end: prepare, supervise, rest, and again."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import structlog
import zmq.asyncio

from omniserve_agent.engine.messages import EngineConfig
from omniserve_agent.node.assignments import Assignment, EngineKey
from omniserve_agent.node.backoff import Backoff, RestartPolicy
from omniserve_agent.node.cluster.assigned import EngineIdentity, identity
from omniserve_agent.node.cluster.credentials import ReadSecret, hub_token
from omniserve_agent.node.cluster.diff import RunningEngine
from omniserve_agent.node.cluster.model_cache import ModelCache
from omniserve_agent.node.cluster.node_memory import NodeMemory
from omniserve_agent.node.cluster.run_state import EngineFacts
from omniserve_agent.node.cluster.shares import FoundDevice
from omniserve_agent.node.cores import EngineCores
from omniserve_agent.node.devices import Device
from omniserve_agent.node.engine_client import EngineClient
from omniserve_agent.node.errors import NodeError
from omniserve_agent.node.locality import cores_line
from omniserve_agent.node.memory import EngineDemand
from omniserve_agent.node.model_store import Progress, model_bytes, model_layers
from omniserve_agent.node.plan import PreparedEngine, engine_config, wanted_dtype
from omniserve_agent.node.progress import ProgressLog
from omniserve_agent.node.supervisor import ENGINE_COMMAND, Supervision, Supervisor
from omniserve_agent.settings import Settings
from omniserve_crds.servingnode import EngineAssignment, RunReason

T = TypeVar("T")
# As long as the assignment stands: what lacked may have come, a volume or memory for instance.
RESTS = RestartPolicy(first_s=10.0, longest_s=300.0, max_failures=1 << 30)


@dataclass(frozen=True)
class EngineTools:
    """What every engine of the node shares."""

    settings: Settings
    cache: ModelCache
    memory: NodeMemory
    context: zmq.asyncio.Context
    directory: Path  # private: the sockets lie there
    cores: Sequence[int]  # the mask of engine processes; their threads pin themselves within
    read_secret: ReadSecret
    command: Sequence[str] = ENGINE_COMMAND
    supervision: Supervision = field(default_factory=Supervision)
    rests: RestartPolicy = RESTS


class EngineUnit:
    """Run `run` as a task; it returns after `stop`, when nothing of the engine is left."""

    def __init__(
        self,
        assignment: EngineAssignment,
        device: FoundDevice,
        cores: EngineCores,
        tools: EngineTools,
        changed: Callable[[], None],
    ) -> None:
        self.assignment = assignment
        self.identity: EngineIdentity = identity(assignment)
        self.cores = cores
        self.client = self._new_client(tools.settings)
        self.model_dir: Path | None = None
        self.weights_bytes = self.layers = 0  # until the model is on disk
        self._device = device
        self._tools = tools
        self._changed = changed
        self._stopping = asyncio.Event()
        self._preparing: tuple[str, float] | None = ("queued", 0.0)
        self._failure: tuple[RunReason, str] | None = None
        self._supervisor: Supervisor | None = None

    @property
    def running(self) -> RunningEngine:
        """The engine as a diff sees it."""
        ready = self.model_dir is not None and self._failure is None
        return RunningEngine(self.identity, ready, self._stopping.is_set())

    @property
    def facts(self) -> EngineFacts:
        """The engine as its services' reports see it."""
        return EngineFacts(
            failure=self._failure,
            preparing=self._preparing,
            ready=self.client.ready is not None,
            progress=self.client.progress,
            was_ready=self.client.was_ready,
        )

    def stop(self) -> None:
        """Ask `run` to end the engine and return."""
        self._stopping.set()
        if self._supervisor is not None:
            self._supervisor.stop()

    async def run(self) -> None:
        """Attempts, with growing rests between them, until `stop`."""
        backoff = Backoff(self._tools.rests)
        try:
            while not self._stopping.is_set():
                begun_s = self._tools.supervision.clock()
                await self._attempt()
                served = self.client.was_ready
                lived_s = self._tools.supervision.clock() - begun_s if served else 0.0
                if not self._stopping.is_set():
                    await self._rest(backoff.after_life(lived_s) or self._tools.rests.longest_s)
        finally:
            self._let_go()

    async def _attempt(self) -> None:
        """Prepare the model and supervise the engine until it is given up; whatever goes wrong is
        reported, and tried again after a rest."""
        reason = RunReason.LOAD_FAILED
        try:
            config = await self._prepared()
            reason = RunReason.ENGINE_FAILED
            if config is not None:
                await self._supervise(config)
        except NodeError as error:
            self._fail(reason, str(error))
        except Exception as error:
            structlog.get_logger().exception("an engine could not be run", engine=self.client.name)
            self._fail(reason, f"{type(error).__name__}: {error}")

    async def _supervise(self, config: EngineConfig) -> None:
        """The engine's lives, until it is given up or stopped."""
        self._supervisor = Supervisor(
            self.client,
            config,
            self._tools.context,
            self._tools.directory,
            cores=self._tools.cores,
            command=self._tools.command,
            supervision=self._tools.supervision,
        )
        if self._stopping.is_set():
            self._supervisor.stop()
        self._changed()
        await self._supervisor.run()
        if not self._stopping.is_set():
            reason = self._supervisor.failure or "the engine ended"
            self._fail(RunReason.ENGINE_FAILED, reason)

    async def _prepared(self) -> EngineConfig | None:
        """The configuration, with the model on disk and the memory reserved; None: stopped."""
        device, known_bytes = self.assignment.device, self.assignment.weights_bytes or 0
        self._tools.memory.reserve(device, self._demand(known_bytes))
        log = ProgressLog(self._uri)

        def step(stage: str, fraction: float) -> None:
            self._preparing = (stage, fraction)
            log.step(stage, fraction)

        model_dir = await self._unless_stopped(self._acquire(step))
        if model_dir is None:
            return None
        self.model_dir, self._preparing = model_dir, None
        self.layers = model_layers(model_dir)
        named = self._named()
        self.weights_bytes = model_bytes(model_dir, wanted_dtype(self._tools.settings, named))
        sizes = self._tools.memory.reserve(device, self._demand(self.weights_bytes))
        gpu = Device(self._device.id, self._device.free_bytes)
        engine = PreparedEngine(named, model_dir, self.weights_bytes, gpu)
        config = engine_config(self._tools.settings, engine, self.cores, sizes)
        structlog.get_logger().info(cores_line(config), engine=self.client.name)
        return config

    async def _acquire(self, step: Progress) -> Path:
        """The model, with the hub's token where one is assigned."""
        name = self.assignment.credentials_secret
        token = await hub_token(self._tools.read_secret, name) if name else None
        return await self._tools.cache.acquire(self._uri, step, token)

    @property
    def _uri(self) -> str:
        revision = self.assignment.revision
        is_pinned = revision is not None and self.assignment.uri.startswith("hf://")
        return f"{self.assignment.uri}@{revision}" if is_pinned else self.assignment.uri

    def _named(self) -> Assignment:
        """The engine in the planner's words; its services change while it runs."""
        wanted = self.assignment
        key = EngineKey(
            uri=wanted.uri,
            revision=wanted.revision,
            dtype=str(wanted.dtype),
            kv_cache_dtype=str(wanted.kv_cache_dtype),
            max_model_len=wanted.max_model_len,
            credentials=None,
            exclusive=None,
        )
        return Assignment(self.client.name, key, ())

    def _demand(self, weights_bytes: int) -> EngineDemand:
        return EngineDemand(
            name=f"engine on {self.assignment.device}",
            model_bytes=weights_bytes,
            cuda_free_bytes=self._device.free_bytes,
            device_kv_bytes=self._tools.settings.device_kv_bytes,
            host_kv_bytes=self.assignment.host_kv_bytes,
        )

    def _new_client(self, settings: Settings) -> EngineClient:
        return EngineClient(
            f"{self.assignment.device.replace(':', '')}-{self.assignment.key[:12]}",
            max_replays=settings.be_retries,
            max_waiting=settings.max_waiting,
        )

    def _fail(self, reason: RunReason, message: str) -> None:
        structlog.get_logger().error("engine failed", engine=self.client.name, reason=message)
        self._failure, self._preparing = (reason, message), None
        self._let_go()

    def _let_go(self) -> None:
        """Give back model and memory. Doors stay open and tell what is the matter."""
        if self.model_dir is not None:
            self._tools.cache.release(self.model_dir)
            self.model_dir = None
        self._tools.memory.release(self.assignment.device)
        self._changed()

    async def _rest(self, rest_s: float) -> None:
        """Wait, and begin anew with a client that has not been given up."""
        await self._unless_stopped(self._tools.supervision.sleep(rest_s))
        if not self._stopping.is_set():
            self._failure, self._preparing = None, ("queued", 0.0)
            self._supervisor, self.client = None, self._new_client(self._tools.settings)

    async def _unless_stopped(self, work: Awaitable[T]) -> T | None:
        """The work's result, or None when `stop` came first and the work was given up."""
        task: asyncio.Future[T] = asyncio.ensure_future(work)
        stopped: asyncio.Future[bool] = asyncio.ensure_future(self._stopping.wait())
        both: set[asyncio.Future[Any]] = {task, stopped}
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            return task.result() if task.done() else None
        finally:
            stopped.cancel()
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task
