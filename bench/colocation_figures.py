"""What the co-location benchmark's cells say: attainment, quantiles, ratios, intervals. Pure."""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from colocation_client import CellFigures, LsResult

BLOCK_S = 5.0  # requests that arrive together fare alike: they are drawn together
RESAMPLES = 2000
TTFT_FACTOR = 3.0  # SLO over the median TTFT of requests that meet nobody
LOADS = {"light": 0.30, "medium": 0.60, "heavy": 0.85}


@dataclass(frozen=True)
class Slo:
    """Milliseconds."""

    ttft_ms: float
    tpot_ms: float

    def attained(self, seen: LsResult) -> bool:
        """Whether the request is within both."""
        if seen.status != 200 or seen.ttft_ms is None or seen.ttft_ms > self.ttft_ms:
            return False
        return seen.tpot_ms is None or seen.tpot_ms <= self.tpot_ms


@dataclass(frozen=True)
class Calibration:
    """The SLO, the highest rate at which `ls_alone` attains it, and the loads that follow."""

    slo: Slo
    highest_rate: float
    unloaded_ttft_ms: float
    medium_tpot_ms: float
    points: tuple[tuple[float, float, float], ...]  # rate, attainment, TPOT p50

    @property
    def rates(self) -> dict[str, float]:
        """LS requests per second by load."""
        return {load: share * self.highest_rate for load, share in LOADS.items()}


def calibrate(
    unloaded: CellFigures,
    loaded: Mapping[float, CellFigures],
    tpot_factor: float = 1.5,
    objective: float = 0.99,
) -> Calibration:
    """The highest rate R whose requests attain an SLO that itself follows from 0.6 R.

    Attainment does not rise with the rate: where it seems to, chance did it, and the rates between
    share their mean. It and TPOT are taken as linear between the rates that were measured.
    """
    ttft_ms = _median(r.ttft_ms for r in unloaded.requests)
    rates = sorted(loaded)
    tpot = {rate: _median(r.tpot_ms for r in loaded[rate].requests) for rate in rates}
    best = None
    for step in range(int(100 * rates[0]), int(100 * rates[-1]) + 1, 5):
        rate = step / 100
        medium_ms = _between(rates, tpot, LOADS["medium"] * rate)
        slo = Slo(round(TTFT_FACTOR * ttft_ms), round(tpot_factor * medium_ms))  # as the API has it
        reached = {r: attainment(loaded[r].requests, slo) for r in rates}
        fitted = not_rising(reached, {r: len(loaded[r].requests) for r in rates})
        if _between(rates, fitted, rate) >= objective:
            best = (rate, slo, medium_ms, reached)
    if best is None:
        raise ValueError(
            f"ls_alone attains {100 * objective:.0f} % at none of {rates} requests per second; "
            "search lower rates"
        )
    rate, slo, medium_ms, reached = best
    points = tuple((r, reached[r], tpot[r]) for r in rates)
    return Calibration(slo, rate, ttft_ms, medium_ms, points)


def not_rising(values: Mapping[float, float], weights: Mapping[float, int]) -> dict[float, float]:
    """The nearest values by weighted squares that never rise with their key, by pooling adjacent
    violators (Ayer et al., 1955)."""
    pools: list[tuple[float, int, list[float]]] = []  # mean, weight, keys
    for key in sorted(values):
        mean, weight, keys = values[key], weights[key], [key]
        while pools and pools[-1][0] < mean:
            before, more, earlier = pools.pop()
            mean = (mean * weight + before * more) / max(1, weight + more)
            weight, keys = weight + more, earlier + keys
        pools.append((mean, weight, keys))
    return {key: mean for mean, _, keys in pools for key in keys}


def _median(values: Iterator[float | None]) -> float:
    return statistics.median(v for v in values if v is not None)


def _between(rates: Sequence[float], values: Mapping[float, float], rate: float) -> float:
    """Linear between neighbours; the end's value outside."""
    if rate <= rates[0]:
        return values[rates[0]]
    for low, high in itertools.pairwise(rates):
        if rate <= high:
            share = (rate - low) / (high - low)
            return values[low] + share * (values[high] - values[low])
    return values[rates[-1]]


def attainment(requests: Sequence[LsResult], slo: Slo) -> float:
    """Attained / offered; 1 without any."""
    return statistics.fmean(map(slo.attained, requests)) if requests else 1.0


def quantile(values: Sequence[float], share: float) -> float | None:
    """Nearest rank."""
    ordered = sorted(values)
    return ordered[max(1, math.ceil(share * len(ordered))) - 1] if ordered else None


def row(cells: Sequence[CellFigures], slo: Slo) -> dict[str, Any]:
    """One line of the table over all rounds."""
    requests = [r for cell in cells for r in cell.requests]
    finished = [r for r in requests if r.status == 200]
    attained = sum(map(slo.attained, requests))
    ttft = [r.ttft_ms for r in finished if r.ttft_ms is not None]
    tpot = [r.tpot_ms for r in finished if r.tpot_ms is not None]
    seconds = sum(cell.seconds for cell in cells)
    ceilings = sum((Counter(cell.ceilings) for cell in cells), Counter())
    return {
        "offered": len(requests),
        "attained_offered": attained / max(1, len(requests)),
        "attained_finished": attained / max(1, len(finished)),
        "refused_share": sum(r.status == 429 for r in requests) / max(1, len(requests)),
        "failed_share": sum(r.status not in (200, 429) for r in requests) / max(1, len(requests)),
        "ttft_ms_p50": quantile(ttft, 0.5),
        "ttft_ms_p99": quantile(ttft, 0.99),
        "tpot_ms_p50": quantile(tpot, 0.5),
        "tpot_ms_p99": quantile(tpot, 0.99),
        "be_tokens_per_s": sum(c.be_tokens + c.overflow_tokens for c in cells) / seconds,
        "overflow_tokens_per_s": sum(c.overflow_tokens for c in cells) / seconds,
        "ceiling": ceilings.most_common(1)[0][0] if ceilings else "none",
        "rounds": len(cells),
        "stolen_share": sum(c.stolen_share * c.seconds for c in cells) / seconds,
        "commits": list(dict.fromkeys(c.commit for c in cells)),
    }


def be_rate(cell: CellFigures) -> float:
    """BE tokens per second, overflow included."""
    return (cell.be_tokens + cell.overflow_tokens) / cell.seconds


def be_ratio(ours: Sequence[CellFigures], theirs: Sequence[CellFigures]) -> dict[str, float] | None:
    """Paired over rounds: median and range; None where the other side has none."""
    ratios = [be_rate(a) / be_rate(b) for a, b in zip(ours, theirs, strict=True) if be_rate(b)]
    if not ratios:
        return None
    return {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}


def attainment_difference(
    ours: Sequence[CellFigures], theirs: Sequence[CellFigures], slo: Slo, seed: int
) -> dict[str, float]:
    """Percentage points, over the same requests on both sides, with a 95 % bootstrap interval.

    Blocks of neighbouring requests are drawn, not single ones, since their fates hang together.
    """
    blocks = [
        block
        for ours_cell, their_cell in zip(ours, theirs, strict=True)
        for block in _blocks(ours_cell.requests, their_cell.requests, slo)
    ]
    dice = random.Random(seed)
    means = sorted(_mean(dice.choices(blocks, k=len(blocks))) for _ in range(RESAMPLES))
    return {
        "median": 100 * _mean(blocks),
        "low": 100 * means[int(0.025 * RESAMPLES)],
        "high": 100 * means[int(0.975 * RESAMPLES) - 1],
    }


def _blocks(
    ours: Sequence[LsResult], theirs: Sequence[LsResult], slo: Slo
) -> list[tuple[int, int]]:
    """(sum of differences, requests) per stretch of BLOCK_S seconds."""
    sums: Counter[int] = Counter()
    counts: Counter[int] = Counter()
    for mine, other in zip(ours, theirs, strict=True):
        block = int(mine.at_s / BLOCK_S)
        sums[block] += slo.attained(mine) - slo.attained(other)
        counts[block] += 1
    return [(sums[block], counts[block]) for block in counts]


def _mean(blocks: Sequence[tuple[int, int]]) -> float:
    return sum(s for s, _ in blocks) / max(1, sum(n for _, n in blocks))
