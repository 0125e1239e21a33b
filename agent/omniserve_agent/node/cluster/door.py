"""A service's port: it selects service, class and keys, and leads to one engine."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from omniserve_agent.engine.messages import ServiceClass
from omniserve_agent.http.app import API_ROUTES, app_over
from omniserve_agent.http.health import why_not_ready
from omniserve_agent.http.registry import ServiceRegistry
from omniserve_agent.http.server import Server, start
from omniserve_agent.http.state import State
from omniserve_agent.node.cluster.diff import Door
from omniserve_agent.node.cluster.engine_unit import EngineUnit
from omniserve_agent.node.cluster.keys import KeyRing
from omniserve_agent.node.cluster.run_state import DoorFacts
from omniserve_agent.node.services import routed_slo
from omniserve_agent.serving import ServedService
from omniserve_crds.servingnode import ServiceAssignment

FIRST_RETRY_S = 0.5
LONGEST_RETRY_S = 30.0
PROBE_RETRY_S = 1.0


@dataclass(frozen=True)
class Listening:
    """How doors open, and how long requests may take to end when they close."""

    host: str
    grace_s: float
    tls: ssl.SSLContext | None = None  # they speak HTTPS
    at_once: asyncio.Event = field(default_factory=asyncio.Event)  # set: they have no time left


class ServiceDoor:
    """Run `run` as a task: it listens, and returns once `close` has drained what was running."""

    def __init__(
        self,
        assignment: ServiceAssignment,
        unit: EngineUnit,
        shared: State,
        listening: Listening,
        changed: Callable[[], None],
    ) -> None:
        self.assignment = assignment
        self.unit = unit
        self.service: ServedService | None = None
        self._registry = ServiceRegistry()
        self.state = shared.of_port(self._registry)
        self._tokenizer_dir = str(unit.model_dir)
        self._listening_on, self._changed = listening, changed
        self._server: Server | None = None
        self._error: str | None = None
        self._closing = asyncio.Event()
        self._listening = True  # or about to
        self._draining: asyncio.Task[None] | None = None
        self._probing: asyncio.Task[None] | None = None
        self._probed_life: tuple[int, int] | None = None
        self._probe_problem: str | None = None

    @property
    def door(self) -> Door:
        """The door as a diff sees it."""
        closing = self._closing.is_set()
        return Door(self.assignment, self.unit.identity, self._listening, closing)

    @property
    def facts(self) -> DoorFacts:
        """The door as its service's report sees it."""
        return DoorFacts(
            error=self._error,
            draining=self.state.draining or self._closing.is_set(),
            in_flight=self.state.in_flight,
            probed=self._probed_life == self._life,
            probe_problem=self._probe_problem,
        )

    def change(self, assignment: ServiceAssignment, keys: KeyRing, *, node_drains: bool) -> None:
        """Serve as the assignment and the keys say from the next request on."""
        self.assignment = assignment
        if self.unit.model_dir is not None:
            self._tokenizer_dir = str(self.unit.model_dir)
        service = served_service(assignment, self.unit, self._tokenizer_dir, keys)
        if service != self.service:
            self.service = service
            self._registry.replace([service])
        self._drain(node_drains or assignment.drain)

    def close(self) -> None:
        """Take no more requests; `run` returns when the last one has ended."""
        self._closing.set()

    async def run(self) -> None:
        """See the class."""
        try:
            await self._listen()
            await self._closing.wait()
        finally:
            await self._end()
            self._changed()

    def probe(self) -> None:
        """Complete one request unless this engine process has already."""
        away = self.unit.client.ready is None or self._server is None or self._closing.is_set()
        busy = self._probing is not None and not self._probing.done()
        if not (away or busy or self.state.draining or self._probed_life == self._life):
            self._probing = asyncio.create_task(self._probe())

    @property
    def _life(self) -> tuple[int, int]:
        """Which engine process is behind the door."""
        return id(self.unit.client), self.unit.client.restarts

    async def _probe(self) -> None:
        if self.service is None:
            return
        life = self._life
        self._probe_problem = await why_not_ready(self.state, self.service)
        if self._probe_problem is None:
            self._probed_life = life
            self._changed()
        else:
            await asyncio.sleep(PROBE_RETRY_S)

    async def _listen(self) -> None:
        """Bind, again and again while another has the port: a door that closes for instance."""
        retry_s = FIRST_RETRY_S
        with contextlib.suppress(Exception):  # a request tries again and says what is wrong
            await self.state.tokenizing.get(self._tokenizer_dir)
        while self._server is None and not self._closing.is_set():
            try:
                app = app_over(self.state, API_ROUTES)
                on = self._listening_on
                self._server = await start(app, on.host, self.assignment.port, on.tls)
                self._error = None
            except OSError as error:
                self._error = f"port {self.assignment.port} on {on.host}: {error.strerror}"
                structlog.get_logger().error("port not opened", reason=self._error)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._closing.wait(), retry_s)
                retry_s = min(LONGEST_RETRY_S, 2 * retry_s)
        self._changed()

    def _drain(self, wanted: bool) -> None:
        """Begin or end draining, as long as the door is not closing."""
        if self._server is None or self._closing.is_set():
            return
        if wanted and self._draining is None:
            self._draining = asyncio.create_task(self._server.drain(self._listening_on.grace_s))
        elif not wanted and self._draining is not None:
            self._draining.cancel()
            self._draining, self.state.draining = None, False

    async def _end(self) -> None:
        for task in (self._probing, self._draining):
            if task is not None:
                task.cancel()
        if self._server is not None:
            await self._server.shut()
        self._listening = False
        self._changed()
        if self._server is not None:
            await self._server.stop(self._listening_on.grace_s, self._listening_on.at_once)


def served_service(
    assignment: ServiceAssignment, unit: EngineUnit, tokenizer_dir: str, keys: KeyRing
) -> ServedService:
    """The assignment as HTTP routes to it."""
    return ServedService(
        namespace=assignment.namespace,
        name=assignment.name,
        served_name=assignment.served_name,
        service_class=ServiceClass(assignment.service_class),
        backend=unit.client,
        tokenizer_dir=tokenizer_dir,
        max_model_len=unit.identity.max_model_len,
        slo=routed_slo(assignment.slo),
        priority=assignment.priority,
        min_share_percent=assignment.min_share_percent or 0,
        api_keys=keys.keys(assignment.api_keys_secret),
        requires_key=assignment.api_keys_secret is not None,
        uid=assignment.uid,
    )
