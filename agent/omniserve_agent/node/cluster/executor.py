"""Carries out the steps: the only place where engines and doors of the node begin and end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

from omniserve_agent.http.registry import ServiceRegistry
from omniserve_agent.http.state import State
from omniserve_agent.node.cluster.assigned import EngineIdentity
from omniserve_agent.node.cluster.diff import (
    ChangeDoor,
    CloseDoor,
    OpenDoor,
    StartEngine,
    Step,
    Steps,
    StopEngine,
    diff,
)
from omniserve_agent.node.cluster.door import Listening, ServiceDoor
from omniserve_agent.node.cluster.engine_unit import EngineTools, EngineUnit
from omniserve_agent.node.cluster.keys import KeyRing
from omniserve_agent.node.cluster.run_state import RunState, ServiceFacts, run_state
from omniserve_agent.node.cluster.shares import Shares
from omniserve_crds.servingnode import (
    EngineAssignment,
    ServiceAssignment,
    ServingNodeSpec,
)


class Executor:
    """Run `run` as a task. `apply` sets what is wanted; steps follow by themselves."""

    def __init__(
        self,
        shares: Shares,
        tools: EngineTools,
        http: State,
        keys: KeyRing,
        listening: Listening,
    ) -> None:
        self.shares = shares
        self.http = http
        self.keys = keys
        self.spec = ServingNodeSpec()
        self.units: list[EngineUnit] = []
        self.doors: list[ServiceDoor] = []
        self._tools = tools
        self._listening = listening
        self._steps = Steps()
        self._ending = False
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    def apply(self, spec: ServingNodeSpec) -> None:
        """Work towards `spec` from now on."""
        self.spec = spec
        self.keys.want(s.api_keys_secret for s in spec.assignments if s.api_keys_secret)
        self.keys.reread()
        self._changed.set()

    def wake(self) -> None:
        """Something has ended or come: ask for the next steps."""
        self._changed.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            self.reconcile()

    def reconcile(self) -> None:
        """Begin every step that can be begun, and bring doors and routes up to date."""
        engines = [unit.running for unit in self.units]
        doors = [door.door for door in self.doors]
        steps = diff(engines, doors, self.spec, self.shares.room)
        self._steps = steps
        for step in steps.now:
            self._begin(step)
        for door in self.doors:
            door.change(self._assignment_of(door), self.keys, node_drains=self.spec.drain)
        registry = self.http.registry
        by_key = {door.service.key: door.service for door in self.doors if door.service}
        registry.replace(list(by_key.values()))

    async def drain(self) -> None:
        """Close every door for good, and wait for what runs behind them."""
        self._ending = True
        for door in self.doors:
            door.close()
        await self._until(lambda: not self.doors)

    async def end(self) -> None:
        """Stop every engine."""
        for unit in self.units:
            unit.stop()
        await self._until(lambda: not self.units)

    # ---- what is asked about services --------------------------------------------------------

    def unit_of(self, device: str) -> EngineUnit | None:
        """The engine on a device, for as long as any of it is left."""
        return next((unit for unit in self.units if unit.identity.device == device), None)

    def door_of(self, uid: str) -> ServiceDoor | None:
        """A service's newest door."""
        return next((d for d in reversed(self.doors) if d.assignment.uid == uid), None)

    def services(self) -> list[tuple[ServiceAssignment, RunState]]:
        """Every assigned service, then those that are still draining, with their states."""
        wanted = {service.uid: service for service in reversed(self.spec.assignments)}
        assigned = [service for service in self.spec.assignments if wanted[service.uid] is service]
        doors = {door.assignment.uid: door for door in self.doors}
        rest = [door.assignment for uid, door in doors.items() if uid not in wanted]
        return [(s, self._state(s, doors.get(s.uid))) for s in (*assigned, *rest)]

    def _state(self, service: ServiceAssignment, door: ServiceDoor | None) -> RunState:
        unit = self.unit_of(service.device)
        steps, device = self._steps, service.device
        refused = steps.refused_services.get(service.uid) or steps.refused.get(device)
        waiting = steps.waiting.get(device)
        return run_state(
            ServiceFacts(
                ending=self._ending,
                refused=refused,
                waiting=waiting,
                keys_missing=self.keys.problem(service.api_keys_secret),
                engine=unit.facts if unit is not None and waiting is None else None,
                door=door.facts if door is not None else None,
            )
        )

    # ---- steps ---------------------------------------------------------------------------------

    def _begin(self, step: Step) -> None:
        structlog.get_logger().info(_sentence(step))
        match step:
            case StartEngine():
                self._start(step.assignment)
            case StopEngine():
                for unit in self.units:
                    if unit.identity.device == step.device:
                        unit.stop()
            case OpenDoor():
                self._open(step.assignment, step.engine)
            case CloseDoor():
                for door in self.doors:
                    if (door.assignment.uid, door.assignment.port) == (step.uid, step.port):
                        door.close()
            case ChangeDoor():
                pass  # `reconcile` brings every door up to date

    def _start(self, assignment: EngineAssignment) -> None:
        taken = {core for unit in self.units for core in unit.cores.host}
        cores = self.shares.cores(assignment.device, assignment.host_cores, taken)
        device = self.shares.device(assignment.device)
        unit = EngineUnit(assignment, device, cores, self._tools, self.wake)
        self.units.append(unit)
        self._follow(unit.run(), lambda: self.units.remove(unit))

    def _open(self, assignment: ServiceAssignment, engine: EngineIdentity) -> None:
        unit = next(u for u in self.units if u.identity == engine and not u.running.stopping)
        door = ServiceDoor(assignment, unit, self.http, self._listening, self.wake)
        self.doors.append(door)
        self._follow(door.run(), lambda: self.doors.remove(door))

    def _assignment_of(self, door: ServiceDoor) -> ServiceAssignment:
        """The wanted one while the door is the wanted one, else what it had."""
        held = door.assignment
        if door.door.closing:
            return held
        return next(
            (s for s in self.spec.assignments if (s.uid, s.port) == (held.uid, held.port)), held
        )

    def _follow(self, work: Coroutine[Any, Any, None], ended: Callable[[], None]) -> None:
        """Run the work as a task of this node; `ended` runs behind it, however it ends."""

        async def followed() -> None:
            try:
                await work
            except Exception as error:
                structlog.get_logger().error("a part of the node failed", reason=repr(error))
            finally:
                ended()
                self.wake()

        task = asyncio.create_task(followed())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _until(self, done: Callable[[], bool]) -> None:
        while not done() and self._tasks:
            await asyncio.wait(set(self._tasks), return_when=asyncio.FIRST_COMPLETED)


def node_registry() -> ServiceRegistry:
    """Every service of the node, for figures: each has its own port, so names may repeat."""
    return ServiceRegistry(routes=False)


def _sentence(step: Step) -> str:
    """The step for the log."""
    match step:
        case StartEngine():
            return f"starting the engine of {step.assignment.uri} on {step.assignment.device}"
        case StopEngine():
            return f"stopping the engine on {step.device}"
        case OpenDoor():
            wanted = step.assignment
            return f"opening port {wanted.port} for {wanted.namespace}/{wanted.name}"
        case CloseDoor():
            return f"closing port {step.port} of service {step.uid}"
        case ChangeDoor():
            return f"changing {step.assignment.namespace}/{step.assignment.name}"
