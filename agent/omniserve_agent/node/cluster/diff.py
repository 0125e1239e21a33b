"""From what runs and what the ServingNode wants to the next steps. Pure.

Level-triggered: only steps that can be begun now are given, and the question is asked again
whenever one has ended or the spec has changed. An engine goes on for as long as its identity is
wanted; a service's class, SLO, priority and keys change while it runs. A service is reached through
a *door*: its port over one engine. Another port or another engine means another door, opened before
the old one has drained where both can be.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from omniserve_agent.node.cluster.assigned import (
    EngineIdentity,
    Room,
    first_per_device,
    first_per_uid,
    identity,
    refused_engines,
    refused_services,
)
from omniserve_crds.servingnode import EngineAssignment, ServiceAssignment, ServingNodeSpec


@dataclass(frozen=True)
class RunningEngine:
    """An engine from its start until its process is gone."""

    identity: EngineIdentity
    model_ready: bool = False  # its tokenizer is on disk, so that doors can open
    stopping: bool = False


@dataclass(frozen=True)
class Door:
    """A service's port over an engine, from opening until its last request has ended."""

    assignment: ServiceAssignment
    engine: EngineIdentity
    listening: bool = True
    closing: bool = False


@dataclass(frozen=True)
class CloseDoor:
    """Take no more requests there, let those that run finish, close."""

    uid: str
    port: int


@dataclass(frozen=True)
class StopEngine:
    """End the process: no door leads to it any more."""

    device: str


@dataclass(frozen=True)
class StartEngine:
    """Prepare the model and start an engine."""

    assignment: EngineAssignment


@dataclass(frozen=True)
class OpenDoor:
    """Listen on the service's port."""

    assignment: ServiceAssignment
    engine: EngineIdentity


@dataclass(frozen=True)
class ChangeDoor:
    """Class, SLO, name, keys or drain are other ones now."""

    assignment: ServiceAssignment


Step = CloseDoor | StopEngine | StartEngine | OpenDoor | ChangeDoor


@dataclass(frozen=True)
class Steps:
    """What to begin now, and why the rest is not begun: by device, and by service uid."""

    now: tuple[Step, ...] = ()
    waiting: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    refused_services: dict[str, str] = field(default_factory=dict)


def diff(
    engines: Iterable[RunningEngine], doors: Iterable[Door], spec: ServingNodeSpec, room: Room
) -> Steps:
    """The next steps towards `spec`."""
    engines, doors = tuple(engines), tuple(doors)
    refused = refused_engines(spec, room, {engine.identity for engine in engines})
    wanted = {e.device: e for e in first_per_device(spec) if e.device not in refused}
    shut = refused_services(spec)
    services = tuple(s for s in first_per_uid(spec) if s.uid not in shut)
    waiting, starts = _starts(engines, wanted, room)
    steps = (
        *_closings(doors, services, wanted),
        *_changes(doors, services, wanted),
        *_stops(engines, doors, wanted),
        *starts,
        *_openings(engines, doors, services, wanted),
    )
    return Steps(steps, waiting, refused, shut)


def _closings(
    doors: tuple[Door, ...],
    services: tuple[ServiceAssignment, ...],
    wanted: dict[str, EngineAssignment],
) -> list[Step]:
    places = {_place(service, wanted) for service in services}
    return [
        CloseDoor(door.assignment.uid, door.assignment.port)
        for door in doors
        if not door.closing
        and (door.assignment.uid, door.assignment.port, door.engine) not in places
    ]


def _changes(
    doors: tuple[Door, ...],
    services: tuple[ServiceAssignment, ...],
    wanted: dict[str, EngineAssignment],
) -> list[Step]:
    known = {_door_place(door): door for door in doors if not door.closing}
    changed: list[Step] = []
    for service in services:
        door = known.get(_place(service, wanted))
        if door is not None and door.assignment != service:
            changed.append(ChangeDoor(service))
    return changed


def _stops(
    engines: tuple[RunningEngine, ...], doors: tuple[Door, ...], wanted: dict[str, EngineAssignment]
) -> list[Step]:
    """Engines that nobody wants and that no request can reach or is in."""
    identities = {identity(engine) for engine in wanted.values()}
    used = {door.engine for door in doors}
    return [
        StopEngine(engine.identity.device)
        for engine in engines
        if not engine.stopping and engine.identity not in identities | used
    ]


def _starts(
    engines: tuple[RunningEngine, ...], wanted: dict[str, EngineAssignment], room: Room
) -> tuple[dict[str, str], list[Step]]:
    """Engines in the spec's order, each within what those that run still hold."""
    waiting: dict[str, str] = {}
    starts: list[Step] = []
    taken = {engine.identity.device: engine.identity for engine in engines}
    cores = room.host_cores - sum(held.host_cores for held in taken.values())
    kv_bytes = room.host_kv_bytes - sum(held.host_kv_bytes for held in taken.values())
    stopping = {engine.identity for engine in engines if engine.stopping}
    for device, engine in wanted.items():
        held = taken.get(device)
        if held == identity(engine) and held not in stopping:
            continue
        if held is not None:
            waiting[device] = f"waits for the engine of {held.uri} on {device} to end"
        elif engine.host_cores > cores or engine.host_kv_bytes > kv_bytes:
            waiting[device] = (
                f"waits for other engines to end: needs {engine.host_cores} host cores and "
                f"{engine.host_kv_bytes} bytes of host KV, free are {cores} and {kv_bytes}"
            )
        else:
            starts.append(StartEngine(engine))
            cores -= engine.host_cores
            kv_bytes -= engine.host_kv_bytes
    return waiting, starts


def _openings(
    engines: tuple[RunningEngine, ...],
    doors: tuple[Door, ...],
    services: tuple[ServiceAssignment, ...],
    wanted: dict[str, EngineAssignment],
) -> list[Step]:
    able = {e.identity for e in engines if e.model_ready and not e.stopping}
    there = {_door_place(door) for door in doors if not door.closing}
    busy = {door.assignment.port for door in doors if door.listening}
    opened: list[Step] = []
    for service in services:
        engine = wanted.get(service.device)
        if engine is None or identity(engine) not in able or service.port in busy:
            continue
        if (service.uid, service.port, identity(engine)) not in there:
            opened.append(OpenDoor(service, identity(engine)))
    return opened


def _place(
    service: ServiceAssignment, wanted: dict[str, EngineAssignment]
) -> tuple[str, int, EngineIdentity | None]:
    engine = wanted.get(service.device)
    return service.uid, service.port, identity(engine) if engine else None


def _door_place(door: Door) -> tuple[str, int, EngineIdentity | None]:
    return door.assignment.uid, door.assignment.port, door.engine
