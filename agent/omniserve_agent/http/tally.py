"""One service's figures: since the start, and over a window. Pure: the caller has the clock."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from omniserve_agent.http.attainment import (
    Observation,
    Outcome,
    is_attained,
    is_offered,
    tpot_missed,
    ttft_missed,
)
from omniserve_agent.serving import Slo

RATE_SECONDS = 60
MAX_SAMPLES = 65_536


@dataclass(frozen=True)
class Sample:
    """One request that ended, judged by the SLO of its time."""

    seen: Observation
    offered: bool
    attained: bool
    ttft_missed: bool
    tpot_missed: bool


def judged(seen: Observation, slo: Slo | None) -> Sample:
    """The request with what it counts as."""
    offered = is_offered(seen, slo)
    served = offered and seen.outcome in (Outcome.FINISHED, Outcome.CANCELLED)
    late = slo is not None and served and ttft_missed(seen, slo)
    slow = slo is not None and served and tpot_missed(seen, slo)
    return Sample(seen, offered, is_attained(seen, slo), late, slow)


@dataclass
class Counts:
    """Requests by what became of them."""

    offered: int = 0
    attained: int = 0
    finished: int = 0
    refused: int = 0
    failed: int = 0
    cancelled: int = 0
    ttft_missed: int = 0  # of those that finished or were cancelled too late
    tpot_missed: int = 0

    def add(self, sample: Sample) -> None:
        """Count one request."""
        outcome = sample.seen.outcome
        self.offered += sample.offered
        self.attained += sample.attained
        self.finished += outcome is Outcome.FINISHED
        self.refused += outcome is Outcome.REFUSED
        self.failed += outcome is Outcome.FAILED
        self.cancelled += outcome is Outcome.CANCELLED
        self.ttft_missed += sample.ttft_missed
        self.tpot_missed += sample.tpot_missed


@dataclass(frozen=True)
class Quantiles:
    """Milliseconds over the finished requests; None without any."""

    ttft_ms_p50: float | None
    ttft_ms_p99: float | None
    tpot_ms_p50: float | None
    tpot_ms_p99: float | None


def nearest_rank(values: Iterable[float], percent: int) -> float | None:
    """The smallest value with at least `percent` % of all values at or below it."""
    ordered = sorted(values)
    if not ordered:
        return None
    return ordered[max(1, math.ceil(percent * len(ordered) / 100)) - 1]


class Tally:
    """Counts requests and tokens of one service. Memory is bounded by `MAX_SAMPLES`."""

    def __init__(self, started_s: float) -> None:
        self.total = Counts()
        self.output_tokens = 0
        self.waiting = 0  # submitted, no token yet
        self.running = 0  # at least one token
        self._started_s = started_s
        self._samples: deque[Sample] = deque(maxlen=MAX_SAMPLES)
        self._tokens_by_second: deque[tuple[int, int]] = deque(maxlen=RATE_SECONDS + 1)

    def add(self, seen: Observation, slo: Slo | None) -> tuple[bool, bool]:
        """Count a request that ended; (offered, attained)."""
        sample = judged(seen, slo)
        self.total.add(sample)
        self._samples.append(sample)
        return sample.offered, sample.attained

    def add_tokens(self, count: int, now_s: float) -> None:
        """Count output tokens as they are delivered."""
        self.output_tokens += count
        second = int(now_s)
        if self._tokens_by_second and self._tokens_by_second[-1][0] == second:
            count += self._tokens_by_second.pop()[1]
        self._tokens_by_second.append((second, count))

    def tokens_per_minute(self, now_s: float) -> float:
        """Over the last minute, or since the start if that is less."""
        recent = sum(n for second, n in self._tokens_by_second if second > now_s - RATE_SECONDS)
        elapsed_s = min(RATE_SECONDS, max(1.0, now_s - self._started_s))
        return recent * 60 / elapsed_s

    @property
    def mean_output_tokens(self) -> float | None:
        """Of the requests that have finished; None before the first."""
        lengths = [s.seen.output_tokens for s in self._samples if s.seen.outcome == "finished"]
        return sum(lengths) / len(lengths) if lengths else None

    def error_budget_burn(self, slo: Slo, now_s: float) -> float:
        """Share of the offered that missed, refused and failed ones included, over the share that
        may, over the SLO's window; 0 with fewer than its `min_samples`. 1: all of it is used."""
        offered = missed = 0
        for sample in reversed(self._samples):
            if sample.seen.ended_s <= now_s - slo.window_s:
                break
            offered += sample.offered
            missed += sample.offered and not sample.attained
        if not offered or offered < slo.min_samples:
            return 0.0
        return missed / offered / (1.0 - slo.objective_percent / 100)

    def window(self, now_s: float, window_s: float) -> tuple[Counts, Quantiles]:
        """Figures of the requests that ended within the last `window_s` seconds."""
        counts, recent = Counts(), []
        for sample in reversed(self._samples):
            if sample.seen.ended_s <= now_s - window_s:
                break
            counts.add(sample)
            recent.append(sample.seen)
        return counts, _quantiles(recent)


def _quantiles(recent: list[Observation]) -> Quantiles:
    finished = [seen for seen in recent if seen.outcome is Outcome.FINISHED]
    ttfts = [seen.ttft_ms for seen in finished if seen.ttft_ms is not None]
    tpots = [seen.tpot_ms for seen in finished if seen.tpot_ms is not None]
    return Quantiles(
        ttft_ms_p50=nearest_rank(ttfts, 50),
        ttft_ms_p99=nearest_rank(ttfts, 99),
        tpot_ms_p50=nearest_rank(tpots, 50),
        tpot_ms_p99=nearest_rank(tpots, 99),
    )
