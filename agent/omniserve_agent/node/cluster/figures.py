"""A service's figures for its report. Pure."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from omniserve_agent.engine.messages import Stats
from omniserve_agent.http.tally import Counts, Quantiles
from omniserve_crds.servingnode import BeWindow, ErrorBudgetReport, LsWindow

WINDOW_S = 60.0
MOST_NAMED = 16
FARTHEST_MINUTES = 365 * 24 * 60


def ls_window(counts: Counts, quantiles: Quantiles, burn: float) -> LsWindow:
    """Over the service's SLO window. `burn` of its error budget: 1 when all of it is used."""
    return LsWindow(
        offered=counts.offered,
        finished=counts.finished,
        attained=counts.attained,
        refused=counts.refused,
        failed=counts.failed,
        ttft_missed=counts.ttft_missed,
        tpot_missed=counts.tpot_missed,
        error_budget_burn_percent=_percent(burn),
        ttft_ms_p50=_whole(quantiles.ttft_ms_p50),
        ttft_ms_p99=_whole(quantiles.ttft_ms_p99),
        tpot_ms_p50=_whole(quantiles.tpot_ms_p50),
        tpot_ms_p99=_whole(quantiles.tpot_ms_p99),
    )


def error_budget(stats: Stats | None) -> ErrorBudgetReport | None:
    """None before the first figures, and where the engine's policy predicts nothing."""
    if stats is None or not stats.margin_quantile:
        return None
    return ErrorBudgetReport(
        burn_percent=_percent(stats.error_budget_burn),
        slack_percent=_percent(stats.error_budget_slack_share),
        margin_percent=_percent(stats.prediction_margin),
        margin_quantile_percent=_percent(stats.margin_quantile),
        margin_widening_percent=_percent(stats.margin_widening),
    )


@dataclass(frozen=True)
class BeFacts:
    """What a BE service has done lately and has to do."""

    tokens_per_minute: float
    queued: int
    running: int
    throttled_percent: int
    neighbours: tuple[str, ...]  # LS services of the same engine with work, namespace/name
    tokens_left: int


def be_window(facts: BeFacts, now: datetime) -> BeWindow:
    """Over the last minute; the finish is told where there is work and a pace."""
    throttled = facts.throttled_percent > 0
    return BeWindow(
        tokens_per_minute=round(facts.tokens_per_minute),
        queued=facts.queued,
        running=facts.running,
        throttled_percent=facts.throttled_percent,
        throttled_by=list(facts.neighbours[:MOST_NAMED]) if throttled else [],
        predicted_finish=_finish(facts, now),
    )


def _finish(facts: BeFacts, now: datetime) -> str | None:
    if facts.tokens_left <= 0 or facts.tokens_per_minute <= 0:
        return None
    minutes = facts.tokens_left / facts.tokens_per_minute
    return rfc3339(now + timedelta(minutes=min(FARTHEST_MINUTES, minutes)))


def tokens_left(open_requests: Iterable[tuple[int, int]], mean_output: float | None) -> int:
    """Of requests given as (emitted, most) output tokens: as long as finished ones have become on
    average, but at least one more token each, and never beyond their own limits."""
    total = 0
    for emitted, most in open_requests:
        expected = most if mean_output is None else math.ceil(mean_output)
        total += max(0, min(most, max(emitted + 1, expected)) - emitted)
    return total


@dataclass(frozen=True)
class _Seen:
    at_s: float
    iterations: int
    sweeps: int


@dataclass
class YieldShare:
    """How much BE yields: the share of an engine's iterations of the last minute that held LS rows
    while BE work was there. Between samples without BE work nothing counts."""

    _steps: deque[tuple[float, int, int]] = field(default_factory=lambda: deque(maxlen=1024))
    _last: _Seen | None = None

    def add(self, at_s: float, iterations: int, sweeps: int, *, be_work: bool) -> None:
        """The engine's counters now, and whether BE requests were there since the last time."""
        last, self._last = self._last, _Seen(at_s, iterations, sweeps)
        if last is None or iterations < last.iterations or not be_work:
            return  # the first sample, another engine process, or nothing to yield
        done, swept = iterations - last.iterations, sweeps - last.sweeps
        self._steps.append((at_s, done, max(0, done - swept)))

    def percent(self, now_s: float) -> int:
        """0 to 100, rounded up, so that 0 means never."""
        recent = [step for step in self._steps if step[0] > now_s - WINDOW_S]
        done = sum(step[1] for step in recent)
        held = sum(step[2] for step in recent)
        return min(100, math.ceil(100 * held / done)) if done else 0


def rfc3339(moment: datetime) -> str:
    """UTC, whole seconds."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _percent(ratio: float) -> int:
    return round(100 * ratio)


def _whole(value_ms: float | None) -> int | None:
    return None if value_ms is None else round(value_ms)
