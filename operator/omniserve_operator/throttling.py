"""Whether a BE service is held back, and by whom. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from omniserve_crds.conditions import ConditionStatus, Reason
from omniserve_crds.servingnode import BeWindow
from omniserve_operator.attainment import Finding

# Between the two, what was said before holds.
THROTTLED_FROM_PERCENT = 10
FULL_SPEED_TO_PERCENT = 3


def throttled_percent(windows: Sequence[BeWindow]) -> int:
    """The most throttled replica's."""
    return max((w.throttled_percent for w in windows), default=0)


def throttlers(windows: Sequence[BeWindow]) -> list[str]:
    """LS services it yields to, on any node."""
    return sorted({name for w in windows for name in w.throttled_by})[:16]


def throttling(windows: Sequence[BeWindow], before: ConditionStatus, reporting: bool) -> Finding:
    """True, False with a band between them, or Unknown without a report."""
    if not reporting:
        return Finding(
            ConditionStatus.UNKNOWN, Reason.MEASUREMENT_STALE, "no node that serves it reports"
        )
    percent = throttled_percent(windows)
    was = before is ConditionStatus.TRUE
    if percent >= THROTTLED_FROM_PERCENT or (was and percent > FULL_SPEED_TO_PERCENT):
        names = ", ".join(throttlers(windows)) or "LS services of its engine"
        words = f"held back {round_to(percent, 5)} % of the time by {names}"
        return Finding(ConditionStatus.TRUE, Reason.YIELDING_TO_LS, words)
    return Finding(ConditionStatus.FALSE, Reason.FULL_SPEED, "it is not held back")


def round_to(value: int, step: int) -> int:
    return round(value / step) * step
