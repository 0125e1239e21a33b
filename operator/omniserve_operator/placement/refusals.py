"""Many devices' refusals in one verdict with numbers. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from omniserve_crds.conditions import Reason
from omniserve_operator.placement.judge import NoOffer
from omniserve_operator.world import Verdict

_SHOWN = 3


def verdict(placed: int, wanted: int, refusals: Sequence[NoOffer]) -> Verdict:
    """Why only `placed` of `wanted` replicas have a device.

    A neighbour's SLO comes first (there is a place, were it not for that), then capacity, then
    nodes that do not match.
    """
    head = f"{placed} of {wanted} replicas have a device"
    if not refusals:
        return Verdict(Reason.NO_MATCHING_NODES, f"{head}: no other node runs an agent")
    for reason, words in (
        (Reason.WOULD_BREAK_NEIGHBOUR_SLO, "would break a neighbour's SLO"),
        (Reason.INSUFFICIENT_CAPACITY, "have no room"),
    ):
        found = [refusal for refusal in refusals if refusal.reason is reason]
        if found:
            return Verdict(reason, f"{head}: {_counted(found, refusals, words)}")
    return Verdict(
        Reason.NO_MATCHING_NODES, f"{head}: {_counted(refusals, refusals, 'do not match')}"
    )


def _counted(found: Sequence[NoOffer], all_of_them: Sequence[NoOffer], words: str) -> str:
    details = "; ".join(_line(refusal) for refusal in found[:_SHOWN])
    more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return f"{len(found)} of {len(all_of_them)} candidates {words}: {details}{more}"


def _line(refusal: NoOffer) -> str:
    place = f"{refusal.node}/{refusal.device}" if refusal.device else refusal.node
    return f"{place}: {refusal.message}"
