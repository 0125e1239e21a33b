"""The best device for one more replica. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from omniserve_crds.conditions import Reason
from omniserve_crds.llmservice import Spec
from omniserve_operator.placement.board import Board
from omniserve_operator.placement.eligibility import closed_to_new, mismatch
from omniserve_operator.placement.judge import NoOffer, Offer, judge
from omniserve_operator.world import Node, Service


class Search:
    """Looks over the nodes; what a node says to one kind of spec is asked once."""

    def __init__(self, board: Board, nodes: Sequence[Node], upgrading: str | None) -> None:
        self._board = board
        self._nodes = nodes
        self._upgrading = upgrading
        self._asked: dict[str, dict[str, str | None]] = {}

    def best(self, service: Service) -> tuple[Offer | None, list[NoOffer]]:
        """The best offer, and every refusal."""
        if service.spec is None:
            return None, []
        closed = self._closed(service.spec)
        offers: list[Offer] = []
        refusals: list[NoOffer] = []
        for node in self._nodes:
            reason = closed[node.name]
            if reason is not None:
                refusals.append(NoOffer(node.name, "", Reason.NO_MATCHING_NODES, reason))
            elif self._board.holds(node.name, service.uid):
                here = Reason.INSUFFICIENT_CAPACITY
                refusals.append(NoOffer(node.name, "", here, "a replica of it is there already"))
            else:
                self._ask_devices(node, service, offers, refusals)
        best = min(offers, key=lambda offer: offer.rank, default=None)
        return best, refusals

    def _ask_devices(
        self, node: Node, service: Service, offers: list[Offer], refusals: list[NoOffer]
    ) -> None:
        for slot in self._board.slots(node.name):
            answer = judge(self._board, slot, service)
            if isinstance(answer, Offer):
                offers.append(answer)
            else:
                refusals.append(answer)

    def _closed(self, spec: Spec) -> dict[str, str | None]:
        signature = spec.placement.model_dump_json() + str(spec.model.source).partition("/")[0]
        if spec.model.uri.startswith("pvc://"):
            signature += spec.model.uri
        if signature not in self._asked:
            self._asked[signature] = {n.name: self._closed_node(spec, n) for n in self._nodes}
        return self._asked[signature]

    def _closed_node(self, spec: Spec, node: Node) -> str | None:
        if node.name == self._upgrading:
            return "its agent is being upgraded"
        return closed_to_new(spec, node) or mismatch(spec, node)


def with_alternatives(offer: Offer, refusals: Sequence[NoOffer]) -> str:
    """Why there, and shortly why not elsewhere."""
    if not refusals:
        return offer.why
    first = refusals[0]
    place = f"{first.node}/{first.device}" if first.device else first.node
    more = f" and {len(refusals) - 1} others" if len(refusals) > 1 else ""
    return f"{offer.why}; not {place}{more}: {first.message}"[:1024]
