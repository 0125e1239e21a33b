"""What a row costs an iteration, from an engine's own figures. Pure.

Least squares over samples of half a second: time per iteration = fixed + ls·LS rows + be·BE rows.
Placement asks for it before another service comes to the engine. Only intervals with LS rows count:
sweeps of BE alone are as long as they like.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

MOST_SAMPLES = 600
LEAST_SAMPLES = 20
LEAST_LS_ROWS = 0.5  # below it most iterations of the interval held none
LEAST_SPREAD_ROWS = 0.25  # standard deviation; below it a slope would be noise


@dataclass(frozen=True)
class Counters:
    """An engine's counters since its start; rows are summed over layers."""

    iterations: int
    ls_row_layers: int
    be_row_layers: int


@dataclass(frozen=True)
class RowSample:
    """Means per iteration over one interval."""

    iteration_us: float
    ls_rows: float
    be_rows: float


@dataclass(frozen=True)
class RowCosts:
    """Whole microseconds; None where the samples do not tell. `be_us`: of all BE rows together,
    as many as there were lately."""

    ls_row_us: int | None = None
    be_us: int | None = None


def sample(before: Counters, after: Counters, layers: int, iteration_us: float) -> RowSample | None:
    """The interval between two readings; None where nothing ran or another process began."""
    done = after.iterations - before.iterations
    ls = after.ls_row_layers - before.ls_row_layers
    be = after.be_row_layers - before.be_row_layers
    if done <= 0 or layers <= 0 or ls < 0 or be < 0 or iteration_us <= 0:
        return None
    return RowSample(iteration_us, ls / layers / done, be / layers / done)


def row_costs(samples: Sequence[RowSample]) -> RowCosts:
    """The fitted costs; a cost below nothing is none that was told."""
    samples = [s for s in samples if s.ls_rows >= LEAST_LS_ROWS]
    if len(samples) < LEAST_SAMPLES:
        return RowCosts()
    times = np.array([s.iteration_us for s in samples])
    rows = np.array([(s.ls_rows, s.be_rows) for s in samples])
    told = rows.std(axis=0) >= LEAST_SPREAD_ROWS
    design = np.column_stack([np.ones(len(samples)), rows[:, told]])
    slopes = np.full(2, -1.0)
    slopes[told] = np.linalg.lstsq(design, times, rcond=None)[0][1:]
    ls_us, be_row_us = (float(slope) for slope in slopes)
    mean_be_rows = float(rows[:, 1].mean())
    return RowCosts(
        ls_row_us=round(ls_us) if ls_us > 0 else None,
        be_us=round(be_row_us * mean_be_rows) if be_row_us > 0 else None,
    )


@dataclass
class RowLog:
    """The latest samples of one engine."""

    samples: deque[RowSample] = field(default_factory=lambda: deque(maxlen=MOST_SAMPLES))
    _last: Counters | None = None

    def add(self, counters: Counters, layers: int, iteration_us: float) -> None:
        """Another reading."""
        last, self._last = self._last, counters
        if last is None:
            return
        taken = sample(last, counters, layers, iteration_us)
        if taken is not None:
            self.samples.append(taken)

    @property
    def latest(self) -> RowSample | None:
        """The last interval in which anything ran."""
        return self.samples[-1] if self.samples else None

    @property
    def costs(self) -> RowCosts:
        """Fitted to all samples."""
        return row_costs(tuple(self.samples))
