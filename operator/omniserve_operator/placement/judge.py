"""One device and one service: an offer, or a refusal with numbers. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from omniserve_crds.conditions import Reason
from omniserve_crds.servingnode import MAX_ASSIGNMENTS
from omniserve_operator.placement.board import MIB, Board, Slot, wants_exclusive
from omniserve_operator.placement.load import (
    attained_percent,
    budget_room,
    ls_load,
    prediction,
    report_of,
    tightest,
    tpot_slo_ms,
)
from omniserve_operator.world import Service

# An empty device is worth this much load: another model may need it, and an engine must start.
EMPTY_DEVICE_LOAD = 0.25
# A BE service finds no room in an engine with less of its host KV free.
MIN_FREE_KV_SHARE = 0.05


@dataclass(frozen=True)
class Offer:
    """A device that can take the service; the least load wins, then the fewest services."""

    node: str
    device: str
    load: float
    node_services: int
    why: str

    @property
    def rank(self) -> tuple[float, int, str, str]:
        return (round(self.load, 3), self.node_services, self.node, self.device)


@dataclass(frozen=True)
class NoOffer:
    """A device that cannot, and why."""

    node: str
    device: str
    reason: Reason
    message: str


def judge(board: Board, slot: Slot, service: Service) -> Offer | NoOffer:
    """What `slot` says to one more replica of `service`."""
    refusal = (
        _unusable(board, slot, service)
        or _no_share(board, slot, service)
        or _disturbs(slot, service)
    )
    if refusal is not None:
        reason, message = refusal
        return NoOffer(slot.node.name, slot.device, reason, message)
    load, why = _rated(slot, service)
    services = sum(len(s.occupants) for s in board.slots(slot.node.name))
    return Offer(slot.node.name, slot.device, load, services, why)


Finding = tuple[Reason, str] | None


def _unusable(board: Board, slot: Slot, service: Service) -> Finding:
    full = Reason.INSUFFICIENT_CAPACITY
    device = slot.node.device(slot.device)
    if device is None or not device.healthy:
        return full, "the device is gone or not healthy"
    if (holder := slot.exclusive) is not None:
        return full, f"{holder.key} has it exclusively"
    if wants_exclusive(service) and slot.occupants:
        return full, f"{len(slot.occupants)} services are on it and colocation is Exclusive"
    if slot.engine is not None and slot.engine.key != service.engine_key:
        return full, f"its engine runs {slot.engine.uri} for {_names(slot)}"
    taken = sum(len(s.occupants) for s in board.slots(slot.node.name))
    if taken >= MAX_ASSIGNMENTS:
        return full, f"the node has {taken} of {MAX_ASSIGNMENTS} services"
    return None


def _no_share(board: Board, slot: Slot, service: Service) -> Finding:
    if slot.engine is not None:
        return None
    weights, device = board.weights_bytes(service), slot.node.device(slot.device)
    memory = device.memory_bytes if device else 0
    if weights and memory and weights > memory:
        return (
            Reason.INSUFFICIENT_CAPACITY,
            f"the weights take {weights // MIB} MiB, the device has {memory // MIB} MiB",
        )
    cores, kv_bytes = board.share(slot)
    if cores >= 1 and kv_bytes >= MIB:
        return None
    status = slot.node.status
    return (
        Reason.INSUFFICIENT_CAPACITY,
        f"host cores free: {cores} of {status.host_cores}, host KV free: {kv_bytes // MIB} of "
        f"{status.host_kv_bytes // MIB} MiB; an engine needs 1 core and 1 MiB",
    )


def _disturbs(slot: Slot, service: Service) -> Finding:
    if slot.engine is None:
        return None
    return (
        _breaks_budget(slot, service)
        or (_breaks_tpot(slot, service) if service.is_ls else None)
        or (None if service.is_ls else _no_host_kv(slot))
    )


def _breaks_budget(slot: Slot, service: Service) -> Finding:
    for other in slot.neighbours(service):
        if not other.is_ls or budget_room(slot.node, other) > 0:
            continue
        attained = attained_percent(slot.node, other.uid)
        objective = other.spec.slo.objective_percent if other.spec and other.spec.slo else 0
        return (
            Reason.WOULD_BREAK_NEIGHBOUR_SLO,
            f"{other.key} attains {attained:.1f} % of {objective} % there: its error budget is "
            "used up",
        )
    return None


def _breaks_tpot(slot: Slot, service: Service) -> Finding:
    predicted = prediction(slot, service)
    if predicted is None:
        return None
    others = tightest(slot.neighbours(service))
    for strictest, reason in (
        (others, Reason.WOULD_BREAK_NEIGHBOUR_SLO),
        (service, Reason.INSUFFICIENT_CAPACITY),
    ):
        objective = tpot_slo_ms(strictest) if strictest else None
        if strictest is not None and objective and predicted.after_ms > objective:
            return reason, (
                f"{strictest.key}'s TPOT would be {predicted.after_ms:.0f} ms of {objective} ms "
                f"(now {predicted.before_ms:.0f} ms)"
            )
    return None


def _no_host_kv(slot: Slot) -> Finding:
    engine = report_of(slot)
    if engine is None or not engine.host_kv_bytes:
        return None
    if engine.host_kv_free_bytes >= MIN_FREE_KV_SHARE * engine.host_kv_bytes:
        return None
    return (
        Reason.INSUFFICIENT_CAPACITY,
        f"host KV free: {engine.host_kv_free_bytes // MIB} of {engine.host_kv_bytes // MIB} MiB",
    )


def _rated(slot: Slot, service: Service) -> tuple[float, str]:
    if slot.engine is None:
        return EMPTY_DEVICE_LOAD, "the device is empty; a new engine starts"
    if not service.is_ls:
        return _rated_best_effort(slot, service)
    load = ls_load(slot, service)
    return load, f"joins the engine of {_names(slot)}: {_effect(slot, service)}"


def _rated_best_effort(slot: Slot, service: Service) -> tuple[float, str]:
    """Load is what of the error budgets is used up, or of the host KV, whichever is more."""
    rooms = [budget_room(slot.node, other) for other in slot.neighbours(service) if other.is_ls]
    room = min(rooms, default=1.0)
    engine = report_of(slot)
    known = engine is not None and engine.host_kv_bytes > 0
    free = engine.host_kv_free_bytes / engine.host_kv_bytes if engine and known else 1.0
    return max(1 - room, 1 - free, 0.0), (
        f"joins the engine of {_names(slot)}: {room:.0%} of the error budgets left, "
        f"{free:.0%} of the host KV free"
    )


def _effect(slot: Slot, service: Service) -> str:
    """`adds 4 ms to default/chat's TPOT (34 -> 38 of 50 ms)`."""
    predicted = prediction(slot, service)
    strictest = tightest(slot.neighbours(service)) or service
    if predicted is None:
        return "nothing is measured there yet"
    return (
        f"adds {predicted.added_ms:.0f} ms to {strictest.key}'s TPOT "
        f"({predicted.before_ms:.0f} to {predicted.after_ms:.0f} of {tpot_slo_ms(strictest)} ms)"
    )


def _names(slot: Slot) -> str:
    keys = sorted(s.key for s in slot.occupants.values())
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return ", ".join(keys[:3]) + more if keys else "nobody"
