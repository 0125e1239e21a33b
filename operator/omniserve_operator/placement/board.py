"""The devices and who is on them while a plan is made.

The one mutable value of a plan: it is made by `plan`, filled in a fixed order and thrown away.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from omniserve_crds.llmservice import Model
from omniserve_crds.placement import Colocation
from omniserve_crds.servingnode import EngineAssignment
from omniserve_operator.engines import engine_for
from omniserve_operator.world import Node, Service

MIB = 1 << 20


@dataclass
class Slot:
    """One device: its engine and the services on it, by uid."""

    node: Node
    device: str
    engine: EngineAssignment | None = None
    occupants: dict[str, Service] = field(default_factory=dict)

    @property
    def exclusive(self) -> Service | None:
        """The occupant that bears no neighbour."""
        return next((s for s in self.occupants.values() if wants_exclusive(s)), None)

    def neighbours(self, service: Service) -> list[Service]:
        return [other for other in self.occupants.values() if other.uid != service.uid]


def wants_exclusive(service: Service) -> bool:
    return service.spec is not None and service.spec.placement.colocation is Colocation.EXCLUSIVE


class Board:
    """Slots by node and device."""

    def __init__(self, nodes: Iterable[Node]) -> None:
        self._slots: dict[str, dict[str, Slot]] = {}
        self._weights_bytes: dict[str, int] = {}
        for node in nodes:
            for report in node.status.engines:
                known = self._weights_bytes.get(report.key, 0)
                self._weights_bytes[report.key] = max(known, report.weights_bytes)
            names = {d.id for d in node.status.devices}
            names |= {e.device for e in node.spec.engines} if node.spec else set()
            self._slots[node.name] = {name: Slot(node, name) for name in sorted(names)}

    def slots(self, node: str) -> list[Slot]:
        return list(self._slots[node].values())

    def slot(self, node: str, device: str) -> Slot | None:
        return self._slots.get(node, {}).get(device)

    def holds(self, node: str, uid: str) -> bool:
        """A node serves a service on one device only: its port there is one."""
        return any(uid in slot.occupants for slot in self._slots[node].values())

    def __iter__(self) -> Iterator[Slot]:
        for slots in self._slots.values():
            yield from slots.values()

    def keep(self, slot: Slot, engine: EngineAssignment, service: Service) -> None:
        """What is there stays as it is."""
        slot.engine = engine
        slot.occupants[service.uid] = service

    def put(self, slot: Slot, service: Service, model: Model) -> None:
        """A new replica; on an empty device its engine gets that device's share of the host."""
        if slot.engine is None:
            cores, kv_bytes = self.share(slot)
            weights = self.weights_bytes(service)
            slot.engine = engine_for(service, model, slot.device, cores, kv_bytes, weights)
        slot.occupants[service.uid] = service

    def remove(self, slot: Slot, uid: str) -> None:
        slot.occupants.pop(uid, None)
        if not slot.occupants:
            slot.engine = None

    def weights_bytes(self, service: Service) -> int | None:
        """As loaded on another device; None where nobody has loaded the model yet."""
        return self._weights_bytes.get(service.engine_key) or None

    def share(self, slot: Slot) -> tuple[int, int]:
        """Host cores and host KV bytes for a new engine: disjoint from all others on the node.

        Every device has a fixed share, so that an engine that comes or goes changes no other one;
        what older engines hold beyond theirs is not given twice.
        """
        status, slots = slot.node.status, self.slots(slot.node.name)
        count, index = len(slots), slots.index(slot)
        cores = status.host_cores // count + (index < status.host_cores % count)
        kv_bytes = status.host_kv_bytes // count // MIB * MIB
        engines = [s.engine for s in slots if s is not slot and s.engine is not None]
        free_cores = status.host_cores - sum(engine.host_cores for engine in engines)
        free_kv = status.host_kv_bytes - sum(engine.host_kv_bytes for engine in engines)
        return min(cores, max(0, free_cores)), min(kv_bytes, max(0, free_kv))
