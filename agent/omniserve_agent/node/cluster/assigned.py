"""What is assigned to a node: which engine is which, and what cannot be carried out. Pure."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass

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
class Room:
    """What the node has for all engines together, and the devices it has found."""

    devices: tuple[str, ...]
    host_cores: int
    host_kv_bytes: int


def first_per_device(spec: ServingNodeSpec) -> list[EngineAssignment]:
    """The engines that count, in the spec's order."""
    return list({engine.device: engine for engine in reversed(spec.engines)}.values())[::-1]


def first_per_uid(spec: ServingNodeSpec) -> list[ServiceAssignment]:
    """The services that count, in the spec's order."""
    return list({s.uid: s for s in reversed(spec.assignments)}.values())[::-1]


def refused_engines(
    spec: ServingNodeSpec, room: Room, running: AbstractSet[EngineIdentity]
) -> dict[str, str]:
    """By device. What runs keeps what it has; of the rest the first ones get what is left."""
    refused: dict[str, str] = {}
    cores, kv_bytes = room.host_cores, room.host_kv_bytes
    for engine in sorted(first_per_device(spec), key=lambda e: identity(e) not in running):
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


def refused_services(spec: ServingNodeSpec) -> dict[str, str]:
    """By uid: no such engine, or a port that an earlier service has."""
    devices = {engine.device for engine in spec.engines}
    ports: dict[int, str] = {}
    refused: dict[str, str] = {}
    for service in first_per_uid(spec):
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
