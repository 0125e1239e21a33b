"""Measured SLO attainment of an LS service: sums over its replicas, a verdict, hysteresis. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from omniserve_crds.conditions import ConditionStatus, Reason
from omniserve_crds.llmservice import Slo
from omniserve_crds.servingnode import LsWindow

# A kind of miss is part of the reason when it makes up at least this share of them.
MAIN_CAUSE_SHARE = 0.25


@dataclass(frozen=True)
class Measured:
    """One replica's window, from a node that reports."""

    node: str
    window: LsWindow


@dataclass(frozen=True)
class Totals:
    """Sums over replicas; percentiles are the worst node's, since they cannot be summed."""

    offered: int = 0
    finished: int = 0
    attained: int = 0
    refused: int = 0
    failed: int = 0
    ttft_missed: int = 0
    tpot_missed: int = 0
    ttft_ms_p50: int | None = None
    ttft_ms_p99: int | None = None
    tpot_ms_p50: int | None = None
    tpot_ms_p99: int | None = None
    ttft_node: str = ""
    tpot_node: str = ""

    @property
    def attained_percent(self) -> float:
        return 100 * self.attained / self.offered if self.offered else 0.0

    @property
    def worst_node(self) -> str:
        return self.tpot_node or self.ttft_node


def totals(measured: Sequence[Measured]) -> Totals:
    """Sum over sum: a replica with much traffic counts as much as its requests do."""
    windows = [m.window for m in measured]
    ttft = _worst([(m.window.ttft_ms_p99, m.node) for m in measured])
    tpot = _worst([(m.window.tpot_ms_p99, m.node) for m in measured])
    return Totals(
        offered=sum(w.offered for w in windows),
        finished=sum(w.finished for w in windows),
        attained=sum(w.attained for w in windows),
        refused=sum(w.refused for w in windows),
        failed=sum(w.failed for w in windows),
        ttft_missed=sum(w.ttft_missed for w in windows),
        tpot_missed=sum(w.tpot_missed for w in windows),
        ttft_ms_p50=_worst([(w.ttft_ms_p50, "") for w in windows])[0],
        ttft_ms_p99=ttft[0],
        tpot_ms_p50=_worst([(w.tpot_ms_p50, "") for w in windows])[0],
        tpot_ms_p99=tpot[0],
        ttft_node=ttft[1],
        tpot_node=tpot[1],
    )


def _worst(values: Sequence[tuple[int | None, str]]) -> tuple[int | None, str]:
    known = [(value, node) for value, node in values if value is not None]
    # The first by name among equals, so that the message does not flap.
    return min(known, key=lambda entry: (-entry[0], entry[1]), default=(None, ""))


@dataclass(frozen=True)
class Finding:
    """What the figures say now."""

    status: ConditionStatus
    reason: Reason
    message: str


def finding(sums: Totals, slo: Slo, reporting: bool) -> Finding:
    """Without hysteresis. `reporting`: at least one of its nodes has reported lately."""
    unknown = ConditionStatus.UNKNOWN
    if not reporting:
        return Finding(unknown, Reason.MEASUREMENT_STALE, "no node that serves it reports")
    if sums.offered == 0:
        return Finding(unknown, Reason.NO_TRAFFIC, f"no request within {slo.window}")
    if sums.offered < slo.min_samples:
        words = f"{sums.offered} requests within {slo.window}; {slo.min_samples} are needed"
        return Finding(unknown, Reason.INSUFFICIENT_SAMPLES, words)
    if 100 * sums.attained >= slo.objective_percent * sums.offered:
        return Finding(ConditionStatus.TRUE, Reason.ATTAINED, figures(sums, slo))
    return Finding(ConditionStatus.FALSE, _cause(sums), figures(sums, slo))


def _cause(sums: Totals) -> Reason:
    """What most misses come from."""
    refused = sums.refused + sums.failed
    misses = max(1, sums.offered - sums.attained)
    if 2 * refused >= misses:
        return Reason.REFUSED_FOR_CAPACITY
    late = max(1, sums.ttft_missed + sums.tpot_missed)
    ttft, tpot = sums.ttft_missed / late, sums.tpot_missed / late
    if ttft >= MAIN_CAUSE_SHARE and tpot >= MAIN_CAUSE_SHARE:
        return Reason.TTFT_AND_TPOT_MISSED
    return Reason.TTFT_MISSED if ttft > tpot else Reason.TPOT_MISSED


def figures(sums: Totals, slo: Slo) -> str:
    """`98.2 % of 1,000 attained (objective 99 %), ...`, for the message; rounded."""
    parts = [
        f"{sums.attained_percent:.1f} % of {two_digits(sums.offered)} requests attained within "
        f"{slo.window} (objective {slo.objective_percent} %)"
    ]
    for name, p99, node, limit in (
        ("TTFT", sums.ttft_ms_p99, sums.ttft_node, slo.ttft_ms),
        ("TPOT", sums.tpot_ms_p99, sums.tpot_node, slo.tpot_ms),
    ):
        if p99 is not None:
            where = f" on {node}" if node else ""
            parts.append(f"{name} p99 {two_digits(p99)} of {limit} ms{where}")
    if refused := sums.refused + sums.failed:
        parts.append(f"{two_digits(refused)} refused or failed")
    return "; ".join(parts)


def two_digits(value: int) -> int:
    """Rounded to two significant digits, so that a status does not change with every request."""
    if abs(value) < 100:
        return value
    step: int = 10 ** (len(str(abs(value))) - 2)
    return round(value / step) * step


@dataclass(frozen=True)
class Verdict:
    """What was last said, and since when the figures have said otherwise."""

    status: ConditionStatus = ConditionStatus.UNKNOWN
    reason: Reason = Reason.PENDING
    message: str = ""
    contrary_since_s: float | None = None


def with_hysteresis(before: Verdict, now: Finding, slo: Slo, now_s: float) -> Verdict:
    """True and False change places only when the other has held for one more window.

    The first window that disagrees starts the count, the second one, which shares no request with
    it, confirms. What is Unknown gives way at once, and takes over at once.
    """
    flips = {before.status, now.status} == {ConditionStatus.TRUE, ConditionStatus.FALSE}
    if not flips:
        return Verdict(now.status, now.reason, now.message)
    since = before.contrary_since_s if before.contrary_since_s is not None else now_s
    if now_s - since >= slo.window_s:
        return Verdict(now.status, now.reason, now.message)
    # The figures are today's, the verdict is still the old one.
    message = f"{now.message}; {before.status} until it has been so for {slo.window} more"
    return Verdict(before.status, before.reason, message, since)
