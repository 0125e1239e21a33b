"""Budgets instead of headroom: how much BE work an iteration has time for.

LS rows set deadlines; the latency model says what an iteration costs; what is left is BE's, as far
as it helps BE: an iteration stretched by prefill slows every offloaded row, which advances about
one layer per iteration.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from omniserve_agent.scheduling.latency import Correction, LatencyModel, Work, pairs
from omniserve_agent.scheduling.plan import STAGED_CHUNK_ROWS

SHORTEST_S = 1e-6  # no iteration is free, whatever a profile says


@dataclass(slots=True)
class PromptLengths:
    """Of one LS service: its p95 prompt stands for an arrival that may come any moment."""

    ttft_s: float
    lengths: list[int] = field(default_factory=list)

    def observe(self, tokens: int, keep: int = 128) -> None:
        """A request came."""
        self.lengths.append(tokens)
        del self.lengths[:-keep]

    @property
    def p95(self) -> int:
        """Tokens; at least one request has come."""
        ordered = sorted(self.lengths)
        return ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]


def largest_fitting(low: int, high: int, fits: Callable[[int], bool]) -> int:
    """The largest value in [low, high] that fits, by bisection; `low` where none does."""
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


@dataclass(frozen=True, slots=True)
class Forecast:
    """What an iteration is expected to cost, corrected online and with the margin on top."""

    model: LatencyModel
    correction: Correction
    quantile: float

    def seconds(self, kind: str, work: Work) -> float:
        """With the margin that makes predictions hold at the quantile."""
        return self.expected(kind, work) * max(1.0, self.correction.margin(self.quantile))

    def expected(self, kind: str, work: Work) -> float:
        """Without the margin."""
        return self.correction.apply(kind, self.model.predict(work))


def with_prefill(work: Work, layers: int, rows: int, context: int, prompt_rows: int) -> Work:
    """`work` and a pool of `rows` layer-major rows per layer behind `context` tokens.

    The pool is drawn in chunks as large as they come, few layers of many rows; `prompt_rows` are
    what the prompt at hand has.
    """
    if rows == 0:
        return work
    chunk = max(1, min(prompt_rows, STAGED_CHUNK_ROWS))
    calls = [chunk] * (rows * layers // chunk)
    left = rows * layers % chunk
    return replace(
        work,
        chunk_rows=[*work.chunk_rows, *calls, *([left] if left else [])],
        staged_pairs=work.staged_pairs + layers * pairs(context, rows),
    )


def best_prefill_rows(
    candidates: Iterable[int],
    seconds: Callable[[int], float],
    hops: float,
    weight: float,
    layers: int,
) -> int:
    """Rows per layer that maximise BE progress per second.

    Progress is (layer-steps of decoding rows + weight × prefill row-layers) / iteration time: a
    constant number of steps against a prefill that grows with the time it takes.
    """
    return max(
        candidates,
        key=lambda rows: (
            (hops + weight * rows * layers) / max(seconds(rows), SHORTEST_S),
            -rows,
        ),
    )
