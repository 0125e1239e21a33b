"""From what runs and what the ServingNode wants to the next steps. Pure.

Level-triggered: only steps that can be begun now are given, and the question is asked again
whenever one has ended or the spec has changed. An engine goes on for as long as its identity is
wanted; a service's class, SLO, priority and keys change while it runs. A service is reached through
a *door*: its port over one engine. Another port or another engine means another door, opened before
the old one has drained where both can be.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from omniserve_crds.servingnode import EngineAssignment, ServiceAssignment, ServingNodeSpec

MIB = 1 << 20


@dataclass(frozen=True)
class EngineIdentity:
    """What an engine cannot change while it runs."""

    device: str
    key: str
    uri: str
    revision: str | None
    dtype: str
    kv_cache_dtype: str
    max_model_len: int | None
    host_cores: int
    host_kv_bytes: int


def identity(engine: EngineAssignment) -> EngineIdentity:
    """`weightsBytes` and `credentialsSecret` are not part of it: they matter before loading."""
    return EngineIdentity(
        device=engine.device,
        key=engine.key,
        uri=engine.uri,
        revision=engine.revision,
        dtype=str(engine.dtype),
        kv_cache_dtype=str(engine.kv_cache_dtype),
        max_model_len=engine.max_model_len,
        host_cores=engine.host_cores,
        host_kv_bytes=engine.host_kv_bytes,
    )


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
class Room:
    """What the node has for all engines together, and the devices it has found."""

    devices: tuple[str, ...]
    host_cores: int
    host_kv_bytes: int


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
    refused = _refused_engines(spec, room, {engine.identity for engine in engines})
    wanted = {e.device: e for e in _first_per_device(spec) if e.device not in refused}
    refused_services = _refused_services(spec)
    services = tuple(s for s in _first_per_uid(spec) if s.uid not in refused_services)
    waiting, starts = _starts(engines, wanted, room)
    steps = (
        *_closings(doors, services, wanted),
        *_changes(doors, services, wanted),
        *_stops(engines, doors, wanted),
        *starts,
        *_openings(engines, doors, services, wanted),
    )
    return Steps(steps, waiting, refused, refused_services)


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


# ---- what cannot be carried out --------------------------------------------------------------


def _first_per_device(spec: ServingNodeSpec) -> list[EngineAssignment]:
    return list({engine.device: engine for engine in reversed(spec.engines)}.values())[::-1]


def _first_per_uid(spec: ServingNodeSpec) -> list[ServiceAssignment]:
    return list({s.uid: s for s in reversed(spec.assignments)}.values())[::-1]


def _refused_engines(
    spec: ServingNodeSpec, room: Room, running: AbstractSet[EngineIdentity]
) -> dict[str, str]:
    """By device. What runs keeps what it has; of the rest the first ones get what is left."""
    refused: dict[str, str] = {}
    cores, kv_bytes = room.host_cores, room.host_kv_bytes
    for engine in sorted(_first_per_device(spec), key=lambda e: identity(e) not in running):
        fault = _fault(engine, room, cores, kv_bytes)
        if fault is not None:
            refused[engine.device] = fault
            continue
        cores -= engine.host_cores
        kv_bytes -= engine.host_kv_bytes
    return refused


def _fault(engine: EngineAssignment, room: Room, cores: int, kv_bytes: int) -> str | None:
    if engine.device not in room.devices:
        return f"device {engine.device!r} is not here; there are {', '.join(room.devices)}"
    if not 1 <= engine.host_cores <= cores:
        return (
            f"hostCores is {engine.host_cores}; 1 to {cores} can be had ({room.host_cores} in all)"
        )
    if not MIB <= engine.host_kv_bytes <= kv_bytes:
        return (
            f"hostKvBytes is {engine.host_kv_bytes}; {MIB} to {kv_bytes} can be had "
            f"({room.host_kv_bytes} in all)"
        )
    return None


def _refused_services(spec: ServingNodeSpec) -> dict[str, str]:
    """By uid: no such engine, or a port that an earlier service has."""
    devices = {engine.device for engine in spec.engines}
    ports: dict[int, str] = {}
    refused: dict[str, str] = {}
    for service in _first_per_uid(spec):
        if service.device not in devices:
            refused[service.uid] = f"no engine is assigned to device {service.device!r}"
        elif service.port in ports:
            refused[service.uid] = f"port {service.port} is {ports[service.port]}'s on this node"
        else:
            ports[service.port] = f"{service.namespace}/{service.name}"
    return refused


def ambiguities(spec: ServingNodeSpec) -> list[str]:
    """What is said twice: the first is taken, and each line says so."""
    devices, uids = [e.device for e in spec.engines], [s.uid for s in spec.assignments]
    lines = [
        f"device {device} has {devices.count(device)} engines; the first is taken"
        for device in sorted(set(devices))
        if devices.count(device) > 1
    ]
    return lines + [
        f"service {uid} is assigned {uids.count(uid)} times; the first is taken"
        for uid in sorted(set(uids))
        if uids.count(uid) > 1
    ]
