"""The slow loop of the budgets: how fast the error budget burns shifts the margin's quantile.

The fast loop (`latency.Correction`) takes the margin from the residuals of predictions, at the
quantile that matches the objective. Where requests miss all the same, the quantile rises; where
none does, it falls and BE gets the difference. The same burn shares out the slack: BE prompts begin
with half of it, and get slowly more while the error budget stays unused and quickly less while it
burns, over minutes or in the last half minute. All are bounded and rate-limited, so that neither a
burst of misses nor a quiet night swings the budgets.
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
RISING, FALLING = 0.005, 0.04  # of the share, a second: trust is lost faster than it is won
SHORT_WINDOW_S = 30.0  # bursts of misses show here first


@dataclass(slots=True)
class Window:
    """LS requests that ended in the last seconds."""

    seconds: float
    _judged: deque[tuple[float, bool]] = field(default_factory=deque)
    _missed: int = 0

    def judged(self, attained: bool, now_s: float) -> None:
        """One more; old ones leave."""
        self._judged.append((now_s, attained))
        self._missed += not attained
        while self._judged[0][0] < now_s - self.seconds:
            self._missed -= not self._judged.popleft()[1]

    @property
    def missed_share(self) -> float | None:
        """None with too few samples."""
        count = len(self._judged)
        return self._missed / count if count >= LEAST_SAMPLES else None


@dataclass(slots=True)
class ErrorBudget:
    """`objective`: the share of requests that shall attain; `window_s`: over which it burns."""

    objective: float = 0.99
    window_s: float = 300.0
    enabled: bool = True
    quantile: float = field(init=False)
    widening: float = 1.0  # times the margin
    share: float = FIRST_SHARE  # of LS's slack that BE prompts may take
    _long: Window = field(init=False)
    _short: Window = field(init=False)
    _moved_s: float | None = None

    def __post_init__(self) -> None:
        self.quantile = min(self.objective, HIGHEST)
        self._long, self._short = Window(self.window_s), Window(SHORT_WINDOW_S)

    @property
    def burn(self) -> float:
        """Share missed over share allowed; 0 with too few samples. 1: all of it is used."""
        return (self._long.missed_share or 0.0) / (1.0 - self.objective)

    def judged(self, attained: bool, now_s: float) -> None:
        """An LS request ended."""
        self._long.judged(attained, now_s)
        self._short.judged(attained, now_s)
        if self.enabled:
            self._move(now_s)

    def _move(self, now_s: float) -> None:
        before_s, self._moved_s = self._moved_s, now_s
        if before_s is None or self._long.missed_share is None:
            return
        seconds = min(now_s - before_s, 1.0)
        self._move_share(seconds)
        self._move_margin(PER_SECOND * seconds)

    def _move_share(self, seconds: float) -> None:
        """Up slowly while the error budget is unused, down quickly while it burns or did lately."""
        now = (self._short.missed_share or 0.0) / (1.0 - self.objective)
        unused = max(-1.0, 1.0 - max(self.burn, now) / BURN_HIGH)
        rate = RISING if unused > 0.0 else FALLING
        self.share = min(1.0, max(SMALLEST_SHARE, self.share + rate * seconds * unused))

    def _move_margin(self, step: float) -> None:
        burn = self.burn
        if burn > BURN_HIGH:
            self.quantile = min(HIGHEST, self.quantile + step)
            if self.quantile == HIGHEST:
                self.widening = min(WIDEST, self.widening + step)
        elif burn < BURN_LOW:
            self.widening = max(1.0, self.widening - step)
            if self.widening == 1.0:
                self.quantile = max(LOWEST, self.quantile - step / 4)
