"""From the world to what every node shall run, and what becomes of every service. Pure.

1. what runs is put on the board, 2. what nobody wants leaves, 3. what is missing gets the best
device, LS first, 4. where only the old engine stands in the way, it is replaced in place, 5. nodes
get their specs. The same world gives the same plan, and a world in which that plan has been carried
out gives it again: nothing moves without a reason.
"""

from __future__ import annotations

from collections.abc import Sequence

from omniserve_operator.placement.board import Board, Slot, wants_exclusive
from omniserve_operator.placement.draft import Draft
from omniserve_operator.placement.eligibility import closed_to_new, mismatch
from omniserve_operator.placement.existing import Existing, existing_on
from omniserve_operator.placement.result import Phase, Plan, Replica
from omniserve_operator.placement.search import Search, with_alternatives
from omniserve_operator.placement.specs import node_spec
from omniserve_operator.placement.upgrade import keeps_drain, to_restart, upgrading_node
from omniserve_operator.ports import ports
from omniserve_operator.tenancy import ACCEPTED, acceptance, allowances
from omniserve_operator.world import Node, World


def plan(world: World) -> Plan:
    """The whole plan."""
    upgrading = upgrading_node(world)
    nodes = tuple(sorted(world.nodes, key=lambda node: node.name))
    board = Board(nodes)
    drafts = _drafts(world)
    _take_stock(drafts, board, nodes, upgrading)
    _fill(drafts, board, Search(board, nodes, upgrading), upgrading)
    numbers = ports(world)
    services = {uid: d.finished(world, numbers.get(uid)) for uid, d in drafts.items()}
    closing = frozenset(n.name for n in nodes if _closes(n, world, drafts, upgrading))
    specs = {
        node.name: node_spec(node, board, services, world, closing=node.name in closing)
        for node in nodes
        if node.agent is not None or node.spec is not None
    }
    restarts = tuple(pod for node in nodes if (pod := to_restart(node, world)) is not None)
    return Plan(services, specs, restarts[:1], closing)


def _drafts(world: World) -> dict[str, Draft]:
    """In the order of placement."""
    accepted = {s.uid: acceptance(s, world.tenancy(s.namespace)) for s in world.services}
    granted = allowances(world, [s for s in world.services if accepted[s.uid] is ACCEPTED])
    ranked = sorted(world.services, key=lambda service: service.rank)
    return {s.uid: Draft(s, accepted[s.uid], granted.get(s.uid, s.wanted)) for s in ranked}


def _take_stock(
    drafts: dict[str, Draft], board: Board, nodes: Sequence[Node], upgrading: str | None
) -> None:
    services = {uid: draft.service for uid, draft in drafts.items()}
    for node in nodes:
        on_node = existing_on(node, services)
        for existing in on_node:
            _note(drafts[existing.assignment.uid], existing, on_node, upgrading)
    for draft in drafts.values():
        draft.choose_surplus()
        draft.existing = [e for e in draft.existing if not _is_over(draft, e)]
        for existing in draft.existing:
            slot = board.slot(existing.node.name, existing.assignment.device)
            if slot is not None:
                board.keep(slot, existing.engine, draft.service)


def _note(
    draft: Draft, existing: Existing, on_node: Sequence[Existing], upgrading: str | None
) -> None:
    draft.existing.append(existing)
    why = existing.why_it_goes(upgrading) or _why_it_shares_not(existing, on_node)
    if why and not draft.frozen:
        draft.why_going[existing.node.name] = why


def _why_it_shares_not(existing: Existing, on_node: Sequence[Existing]) -> str | None:
    """A service that has become Exclusive leaves the device that it shares."""
    others = [
        other
        for other in on_node
        if other is not existing
        and other.assignment.device == existing.assignment.device
        and not other.assignment.drain
    ]
    shared = wants_exclusive(existing.service) and others
    return "colocation is Exclusive, and others are there" if shared else None


def _is_over(draft: Draft, existing: Existing) -> bool:
    """It has been drained, so it leaves the node's spec."""
    return draft.phase(existing) is Phase.DRAINS and existing.drained


def _fill(drafts: dict[str, Draft], board: Board, search: Search, upgrading: str | None) -> None:
    """Place what is missing; a replaced engine may let later services in, so look again."""
    waiting = [draft for draft in drafts.values() if draft.missing]
    while waiting:
        for draft in waiting:
            _place(draft, board, search)
        short = [draft for draft in waiting if draft.missing]
        if not any(_recreate(draft, drafts, board, upgrading) for draft in short):
            return
        waiting = [draft for draft in drafts.values() if draft.missing]


def _place(draft: Draft, board: Board, search: Search) -> None:
    spec = draft.service.spec
    while spec is not None and draft.missing:
        offer, refusals = search.best(draft.service)
        draft.refusals = refusals
        slot = board.slot(offer.node, offer.device) if offer else None
        if offer is None or slot is None:
            return
        board.put(slot, draft.service, spec.model)
        why = with_alternatives(offer, refusals)
        draft.new[offer.node] = Replica(offer.node, offer.device, Phase.STAYS, why, ready=False)


def _recreate(draft: Draft, drafts: dict[str, Draft], board: Board, upgrading: str | None) -> bool:
    """Replace one outdated engine in place, where everybody on it is outdated too.

    One replica at a time: the others of the service answer.
    """
    spec = draft.service.spec
    if spec is None or not draft.all_good_are_ready:
        return False
    for existing in draft.going:
        slot = board.slot(existing.node.name, existing.assignment.device)
        open_to_it = existing.node.name != upgrading and not (
            closed_to_new(spec, existing.node) or mismatch(spec, existing.node)
        )
        if slot is None or not open_to_it or not _all_outdated(slot, drafts):
            continue
        _evict(slot, drafts, board)
        board.put(slot, draft.service, spec.model)
        why = "the old engine on this device was replaced: there was no room beside it"
        name, device = existing.node.name, existing.assignment.device
        draft.new[name] = Replica(name, device, Phase.STAYS, why, ready=False)
        return True
    return False


def _all_outdated(slot: Slot, drafts: dict[str, Draft]) -> bool:
    on_it = [_here(drafts[uid], slot) for uid in slot.occupants]
    return bool(on_it) and all(e is not None and e.outdated for e in on_it)


def _here(draft: Draft, slot: Slot) -> Existing | None:
    found = (e for e in draft.going if e.node.name == slot.node.name)
    return next((e for e in found if e.assignment.device == slot.device), None)


def _evict(slot: Slot, drafts: dict[str, Draft], board: Board) -> None:
    for uid in list(slot.occupants):
        drafts[uid].recreated.add(slot.node.name)
        board.remove(slot, uid)


def _closes(node: Node, world: World, drafts: dict[str, Draft], upgrading: str | None) -> bool:
    """For an agent upgrade, once nobody there waits for a replacement to answer."""
    if keeps_drain(node, world):
        return True
    if node.name != upgrading:
        return False
    on_it = [
        draft for draft in drafts.values() if any(e.node.name == node.name for e in draft.existing)
    ]
    return all(draft.missing or draft.frozen for draft in on_it)
