"""Cluster-unique ports of services. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from omniserve_operator.world import Service, World

FIRST_PORT = 20_000
LAST_PORT = 29_999


def ports(world: World) -> dict[str, int]:
    """A port for each service, by uid; one that is told keeps it.

    What a status says counts first, then what a node was told (the status may not have been
    written yet), older services before younger ones; the rest get the lowest free ports. Services
    beyond the range get none.
    """
    services = sorted(world.services, key=lambda s: (s.created, s.key))
    assigned = _assigned(world)
    taken: dict[int, str] = {}
    for service in services:
        for port in (service.status.port, assigned.get(service.uid)):
            if port is not None and FIRST_PORT <= port <= LAST_PORT and port not in taken:
                taken[port] = service.uid
                break
    _fill(taken, services)
    return {uid: port for port, uid in taken.items()}


def _assigned(world: World) -> dict[str, int]:
    return {
        assignment.uid: assignment.port
        for node in world.nodes
        if node.spec is not None
        for assignment in node.spec.assignments
    }


def _fill(taken: dict[int, str], services: Iterable[Service]) -> None:
    has_one = set(taken.values())
    free = (port for port in range(FIRST_PORT, LAST_PORT + 1) if port not in taken)
    # The free ports are read lazily while `taken` grows: only numbers behind the reader are added.
    for service in services:
        if service.uid in has_one:
            continue
        port = next(free, None)
        if port is None:
            return
        taken[port] = service.uid
