"""The latency model: what an iteration will cost on one (model, device, dtype).

    seconds = fixed + Σ_layers dense(rows at the layer) + Σ_chunks dense(chunk rows)
            + head(logit rows) + key × device keys + pair × prefill pairs + join × joined rows
            + host × host KV bytes

`dense` and `head` are curves as profiled (a staircase on GPUs, nearly linear above a few rows on
CPUs); attention is linear in its work (the paper's f_D and f_A). Host KV bytes are there because on
a CPU device the host workers' reads compete for the same memory.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

FEWEST = 128  # iterations, before one that was slow can move a margin
MOST_RATIO = 4.0  # of observed to predicted: beyond it something held the machine up
STEP_RATIO = 0.5  # an increment this much above the curve's mean slope is a step


@dataclass(frozen=True, slots=True)
class Curve:
    """Seconds by rows at profiled points: linear between them, the last slope beyond."""

    rows: tuple[int, ...]  # ascending, at least one
    seconds: tuple[float, ...]

    def at(self, rows: float) -> float:
        """Seconds for `rows` rows; 0 for none."""
        if rows <= 0:
            return 0.0
        if len(self.rows) == 1 or rows <= self.rows[0]:
            return self.seconds[0]
        index = min(max(bisect_left(self.rows, rows), 1), len(self.rows) - 1)
        low, high = self.rows[index - 1], self.rows[index]
        share = (rows - low) / (high - low)
        return self.seconds[index - 1] + share * (self.seconds[index] - self.seconds[index - 1])

    def edges(self) -> tuple[int, ...]:
        """Row counts after which the next profiled point is a step up: good places to stop."""
        slopes = np.diff(self.seconds) / np.diff(self.rows)
        if len(slopes) == 0:
            return ()
        mean = (self.seconds[-1] - self.seconds[0]) / (self.rows[-1] - self.rows[0])
        return tuple(
            rows
            for rows, slope in zip(self.rows, slopes, strict=False)
            if slope > (1 + STEP_RATIO) * mean
        )


@dataclass(slots=True)
class Served:
    """What one service had of an iteration, in rows × layers."""

    batch: int = 0  # device rows; an offloaded row all at once, as it lands
    staged: int = 0  # layer-major prefill


@dataclass(slots=True)
class Work:
    """What an iteration does, as planned or as it happened."""

    device_rows: int = 0  # at every layer
    joined_rows: list[float] = field(default_factory=list)  # at each layer; may be expected
    chunk_rows: list[int] = field(default_factory=list)  # per dense call of layer-major prefill
    lanes: int = 0  # how many might have joined at each layer; 0: as the last plan says
    logit_rows: int = 0
    device_keys: int = 0  # Σ KV length over device decode rows
    device_pairs: int = 0  # Σ query-key pairs over device prefill chunks
    staged_pairs: int = 0  # the same over layer-major chunks, counted per layer
    host_kv_bytes: float = 0.0  # expected to be read by host workers meanwhile; 0 where waited
    waited: bool = False  # layers waited for the host: the device's work does not explain the time
    served: dict[str, Served] = field(default_factory=dict)  # BE services with a promised share

    def serve(self, service: str, batch: int = 0, staged: int = 0) -> None:
        """A service with a promised share had so much of it, in rows × layers."""
        had = self.served.setdefault(service, Served())
        had.batch += batch
        had.staged += staged


Floats: TypeAlias = NDArray[np.float64]
Count = TypeVar("Count", int, NDArray[np.int64])


def pairs(start: Count, rows: Count) -> Count:
    """Query-key pairs of causal attention of `rows` tokens behind `start` others; or of arrays."""
    return rows * start + rows * (rows + 1) // 2


FEATURES = ("fixed", "key", "pair", "join", "host")


@dataclass(frozen=True, slots=True)
class LatencyModel:
    """See the module. Coefficients are seconds per unit of their feature."""

    layers: int
    dense: Curve  # one layer
    head: Curve
    fixed: float = 0.0
    key: float = 0.0  # per key and layer
    pair: float = 0.0  # per pair and layer
    join: float = 0.0  # per joined row and layer
    host: float = 0.0  # per byte

    def predict(self, work: Work) -> float:
        """Seconds."""
        return self.curves(work) + float(
            np.dot(self.features(work), [getattr(self, name) for name in FEATURES])
        )

    def curves(self, work: Work) -> float:
        """The part that dense modules and head take."""
        rest = self.layers - len(work.joined_rows)
        seconds = rest * self.dense.at(work.device_rows) + self.head.at(work.logit_rows)
        for joined, layers in Counter(work.joined_rows).items():
            seconds += layers * self.dense.at(work.device_rows + joined)
        for rows, calls in Counter(work.chunk_rows).items():
            seconds += calls * self.dense.at(rows)
        return seconds

    def features(self, work: Work) -> tuple[float, ...]:
        """What the coefficients, in the order of FEATURES, are multiplied with."""
        return (
            1.0,
            float(self.layers * work.device_keys),
            float(self.layers * work.device_pairs + work.staged_pairs),
            float(sum(work.joined_rows)),
            work.host_kv_bytes,
        )


DOUBTED, SURE = ("join", "host"), 3.0


def fit(base: LatencyModel, works: Sequence[Work], seconds: Sequence[float]) -> LatencyModel:
    """Coefficients by least squares over observed iterations, none negative; curves stay.

    Relative errors are minimised, so that short iterations count as much as long ones. Those that
    waited for the host are left out. What joins and host reads seem to cost is 0 where it may as
    well be noise (below SURE standard errors): on many devices they cost nothing.
    """
    seen = [pair for pair in zip(works, seconds, strict=True) if not pair[0].waited]
    if not seen:
        return base
    taken = np.array([took for _, took in seen])
    weights = 1.0 / taken
    table = np.array([base.features(work) for work, _ in seen]) * weights[:, None]
    target = (taken - [base.curves(work) for work, _ in seen]) * weights
    active = np.flatnonzero(np.linalg.norm(table, axis=0)).tolist()
    values = np.zeros(len(FEATURES))
    while active:
        found, errors = _least_squares(table[:, active], target)
        if np.any(found < 0):
            active.pop(int(np.argmin(found)))
            continue
        sure = [
            value / error if FEATURES[i] in DOUBTED and error else np.inf
            for i, value, error in zip(active, found, errors, strict=True)
        ]
        if min(sure) >= SURE:
            values[active] = found
            break
        active.pop(int(np.argmin(sure)))
    named = dict(zip(FEATURES, values.tolist(), strict=True))
    return LatencyModel(base.layers, base.dense, base.head, **named)


def _least_squares(table: Floats, target: Floats) -> tuple[Floats, Floats]:
    """Coefficients and their standard errors (0 where there are too few rows to tell)."""
    found = np.asarray(np.linalg.lstsq(table, target, rcond=None)[0], np.float64)
    spare = len(target) - table.shape[1]
    if spare <= 0:
        return found, np.zeros_like(found)
    variance = float(np.sum((target - table @ found) ** 2)) / spare
    lengths = np.linalg.norm(table, axis=0)  # columns differ by many orders
    inverse = np.linalg.pinv((table / lengths).T @ (table / lengths))
    errors = np.sqrt(variance * np.diag(inverse)) / lengths
    return found, np.asarray(errors, np.float64)


@dataclass
class Correction:
    """Online: a slow factor per kind of iteration, and how predictions scattered lately."""

    alpha: float = 0.05
    window: int = 512
    factors: dict[str, float] = field(default_factory=dict)
    _ratios: deque[float] = field(default_factory=deque)
    _ordered: list[float] = field(default_factory=list)  # the same, ascending

    def apply(self, kind: str, predicted_s: float) -> float:
        """The corrected prediction."""
        return predicted_s * self.factors.get(kind, 1.0)

    def observe(self, kind: str, predicted_s: float, observed_s: float) -> None:
        """An uncorrected prediction and what came of it; an outlier's weight is bounded."""
        if predicted_s <= 0 or observed_s <= 0:
            return
        factor = self.factors.get(kind, 1.0)
        self._note(observed_s / (predicted_s * factor))
        step = min(max(observed_s / predicted_s, 0.5 * factor), 2.0 * factor)
        self.factors[kind] = factor + self.alpha * (step - factor)

    def _note(self, ratio: float) -> None:
        ratio = min(ratio, MOST_RATIO)
        self._ratios.append(ratio)
        insort(self._ordered, ratio)
        if len(self._ratios) > self.window:
            del self._ordered[bisect_left(self._ordered, self._ratios.popleft())]

    def margin(self, quantile: float) -> float:
        """Observed over predicted at this quantile of the last iterations.

        What few iterations say counts beside a model that is right: as if there had been FEWEST,
        the others as predicted.
        """
        ordered, missing = self._ordered, max(0, FEWEST - len(self._ordered))
        at = int(quantile * (len(ordered) + missing))
        below = bisect_left(ordered, 1.0)
        if at < below:
            return ordered[at]
        return 1.0 if at < below + missing else ordered[min(len(ordered) - 1, at - missing)]


def accuracy(predicted_s: float, observed_s: float) -> float:
    """1 − |predicted − observed| / observed."""
    return 1.0 - abs(predicted_s - observed_s) / observed_s
