"""A node's part of the plan as its ServingNode's spec. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from omniserve_crds.servingnode import ServiceAssignment, ServingNodeSpec
from omniserve_operator.engines import keys_mirror
from omniserve_operator.placement.board import Board, Slot
from omniserve_operator.placement.result import Phase, ServicePlan
from omniserve_operator.tenancy import ACCEPTED
from omniserve_operator.world import Node, Service, World


def node_spec(
    node: Node,
    board: Board,
    services: Mapping[str, ServicePlan],
    world: World,
    *,
    closing: bool,
) -> ServingNodeSpec:
    """Engines that somebody is on, and who. Nobody is drained before its address is gone."""
    slots = [slot for slot in board.slots(node.name) if slot.engine and slot.occupants]
    found = [
        assignment
        for slot in slots
        for uid in slot.occupants
        if (assignment := _assignment(node, slot, services[uid], world)) is not None
    ]
    drain = closing and all(world.withdrawn(a.uid, node.name) for a in found)
    return ServingNodeSpec(
        node_uid=node.uid,
        engines=[slot.engine for slot in slots if slot.engine],
        assignments=sorted(found, key=lambda a: (a.namespace, a.name)),
        drain=drain,
    )


def _assignment(
    node: Node, slot: Slot, plan: ServicePlan, world: World
) -> ServiceAssignment | None:
    before = _before(node, plan.service.uid)
    if plan.accepted is not ACCEPTED:
        return before
    drains = any(r.node == node.name and r.phase is Phase.DRAINS for r in plan.replicas)
    if plan.port is None or plan.service.spec is None:
        return before
    drains = drains and world.withdrawn(plan.service.uid, node.name)
    return _written(plan.service, slot.device, plan.port, drains)


def _before(node: Node, uid: str) -> ServiceAssignment | None:
    if node.spec is None:
        return None
    return next((a for a in node.spec.assignments if a.uid == uid), None)


def _written(service: Service, device: str, port: int, drains: bool) -> ServiceAssignment | None:
    spec = service.spec
    if spec is None:
        return None
    return ServiceAssignment(
        uid=service.uid,
        generation=service.generation,
        namespace=service.namespace,
        name=service.name,
        served_name=spec.model.served_name or service.name,
        service_class=spec.service_class,
        slo=spec.slo,
        priority=spec.priority,
        min_share_percent=spec.resources.min_share_percent,
        device=device,
        port=port,
        api_keys_secret=keys_mirror(service.uid) if spec.auth else None,
        drain=drains,
    )
