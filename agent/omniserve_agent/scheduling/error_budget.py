"""The slow loop of the budgets: how fast the error budget burns shifts the margin's quantile.

The fast loop (`latency.Correction`) takes the margin from the residuals of predictions, at the
quantile that matches the objective. Where requests miss all the same, the quantile rises; where
none does, it falls and BE gets the difference. The same burn shares out the slack: BE prompts begin
with half of it, and get all or next to none as the error budget stays unused or burns. All are
bounded and rate-limited, so that neither a burst of misses nor a quiet night swings the budgets.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

LOWEST, HIGHEST = 0.5, 0.99  # higher, and one slow iteration would rule hundreds
PER_SECOND = 0.01  # the quantile moves at most so much a second
WIDEST = 1.5  # times the margin, once the quantile is at its highest
BURN_HIGH, BURN_LOW = 0.5, 0.25  # of the budget: above it is saved, below it is spent
LEAST_SAMPLES = 20
SMALLEST_SHARE, FIRST_SHARE = 0.05, 0.5  # of the slack
SHARE_PER_SECOND = 0.02


@dataclass(slots=True)
class ErrorBudget:
    """`objective`: the share of requests that shall attain; `window_s`: over which it burns."""

    objective: float = 0.99
    window_s: float = 300.0
    enabled: bool = True
    quantile: float = field(init=False)
    widening: float = 1.0  # times the margin
    share: float = FIRST_SHARE  # of LS's slack that BE prompts may take
    _judged: deque[tuple[float, bool]] = field(default_factory=deque)
    _missed: int = 0
    _moved_s: float | None = None

    def __post_init__(self) -> None:
        self.quantile = min(self.objective, HIGHEST)

    @property
    def burn(self) -> float:
        """Share missed over share allowed; 0 with too few samples. 1: all of it is used."""
        if len(self._judged) < LEAST_SAMPLES:
            return 0.0
        return self._missed / len(self._judged) / (1.0 - self.objective)

    def judged(self, attained: bool, now_s: float) -> None:
        """An LS request ended."""
        self._judged.append((now_s, attained))
        self._missed += not attained
        while self._judged[0][0] < now_s - self.window_s:
            self._missed -= not self._judged.popleft()[1]
        if self.enabled:
            self._move(now_s)

    def _move(self, now_s: float) -> None:
        before_s, self._moved_s = self._moved_s, now_s
        if before_s is None or len(self._judged) < LEAST_SAMPLES:
            return
        seconds, burn = min(now_s - before_s, 1.0), self.burn
        step, unused = PER_SECOND * seconds, max(-1.0, 1.0 - burn / BURN_HIGH)
        share = self.share + SHARE_PER_SECOND * seconds * unused
        self.share = min(1.0, max(SMALLEST_SHARE, share))
        if burn > BURN_HIGH:
            self.quantile = min(HIGHEST, self.quantile + step)
            if self.quantile == HIGHEST:
                self.widening = min(WIDEST, self.widening + step)
        elif burn < BURN_LOW:
            self.widening = max(1.0, self.widening - step)
            if self.widening == 1.0:
                self.quantile = max(LOWEST, self.quantile - step / 4)
