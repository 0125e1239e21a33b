"""The slow loop of the budgets: what of the error budget is used moves margin and slack.

The fast loop (`latency.Correction`) takes the margin from the residuals of predictions, at the
quantile that matches the objective. The slow loop is one number, the level: every miss lowers it by
a step, every request that attains raises it by a small part of one, so small that it settles where
half of the error budget is used; while next to nothing is used it rises with time as well. Below 0
BE prompts get less of the slack, then the margin widens; above 0 the margin's quantile falls and BE
gets the difference. What was missed long ago holds nothing down. It is bounded and rate-limited, so
that neither a burst of misses nor a quiet night swings the budgets.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from math import inf

LOWEST, HIGHEST = 0.5, 0.99  # quantiles; higher, and one slow iteration would rule hundreds
WIDEST = 1.5  # times the margin, at the lowest level
SMALLEST_SHARE = 0.05  # of the slack
FIRST_LEVEL = -0.5  # trust is earned
USED = 0.5  # of the error budget: what the level settles at
MISS_STEP, MISS_EVERY_S = 0.1, 1.0  # a step a miss, one in so many seconds at most
BURN_LOW, RISING = 0.25, 0.005  # below this burn it rises so much a second
LEAST_SAMPLES = 20
MOST_SAMPLES = 65_536  # of a window: the oldest leave early where more would be in it


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
        while self._judged[0][0] < now_s - self.seconds or len(self._judged) > MOST_SAMPLES:
            self._missed -= not self._judged.popleft()[1]

    @property
    def missed_share(self) -> float | None:
        """None with too few samples."""
        count = len(self._judged)
        return self._missed / count if count >= LEAST_SAMPLES else None

    @property
    def clean(self) -> bool:
        """Whether nobody missed."""
        return self._missed == 0


@dataclass(slots=True)
class ErrorBudget:
    """`objective`: the share of requests that shall attain; `window_s`: over which it burns."""

    objective: float = 0.99
    window_s: float = 300.0
    enabled: bool = True
    quantile: float = field(init=False)
    widening: float = field(init=False)  # times the margin
    share: float = field(init=False)  # of LS's slack that BE prompts may take
    _level: float = FIRST_LEVEL
    _window: Window = field(init=False)
    _moved_s: float | None = None
    _missed_s: float = -inf

    def __post_init__(self) -> None:
        self._window = Window(self.window_s)
        if not self.enabled:
            self._level = 0.0  # neither restraint nor trust
        self._apply()

    @property
    def burn(self) -> float:
        """Share missed over share allowed; 0 with too few samples. 1: all of it is used."""
        return (self._window.missed_share or 0.0) / (1.0 - self.objective)

    @property
    def known(self) -> bool:
        """Whether there are samples enough to tell."""
        return self._window.missed_share is not None

    @property
    def wary(self) -> bool:
        """Whether it asks for more than it began with."""
        return self._level < FIRST_LEVEL

    @property
    def clean(self) -> bool:
        """Whether nobody missed within the window."""
        return self._window.clean

    def judged(self, attained: bool, now_s: float) -> None:
        """An LS request ended."""
        self._window.judged(attained, now_s)
        if self.enabled:
            self._move(attained, now_s)
            self._apply()

    def _move(self, attained: bool, now_s: float) -> None:
        before_s, self._moved_s = self._moved_s, now_s
        if not attained:
            if now_s >= self._missed_s + MISS_EVERY_S:
                self._level, self._missed_s = max(-1.0, self._level - MISS_STEP), now_s
            return
        rarer = USED * (1.0 - self.objective)
        rise = MISS_STEP * rarer / (1.0 - rarer)
        if before_s is not None and self.known and self.burn < BURN_LOW:
            rise = max(rise, RISING * min(1.0, now_s - before_s))
        self._level = min(1.0, self._level + rise)

    def _apply(self) -> None:
        restraint, trust = max(0.0, -self._level), max(0.0, self._level)
        strict = max(0.0, 2.0 * restraint - 1.0)  # once half of the slack is withheld
        first = min(max(self.objective, LOWEST), HIGHEST)
        self.share = 1.0 - (1.0 - SMALLEST_SHARE) * restraint
        self.quantile = first + (HIGHEST - first) * strict - (first - LOWEST) * trust
        self.widening = 1.0 + (WIDEST - 1.0) * strict
