"""When to start an engine again. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RestartPolicy:
    """Exponential waits, forgotten after a stable life, given up after `max_failures` in a row."""

    first_s: float = 0.5
    factor: float = 2.0
    longest_s: float = 30.0
    stable_s: float = 60.0
    max_failures: int = 10


class Backoff:
    """Counts short lives in a row."""

    def __init__(self, policy: RestartPolicy) -> None:
        self._policy = policy
        self._failures = 0

    @property
    def failures(self) -> int:
        """Short lives in a row."""
        return self._failures

    def after_life(self, ready_s: float) -> float | None:
        """Seconds to wait after an engine that was ready for `ready_s`; None: give up."""
        policy = self._policy
        self._failures = 1 if ready_s >= policy.stable_s else self._failures + 1
        if self._failures > policy.max_failures:
            return None
        return min(policy.longest_s, policy.first_s * policy.factor ** (self._failures - 1))


class Starts:
    """What the starts of an engine that was never ready failed of."""

    def __init__(self) -> None:
        self._last: str | None = None

    def fail_alike(self, error: str | None) -> bool:
        """Whether this start failed of the same error as the one before it, so that the next one
        would as well; None: of what is not known."""
        alike = error is not None and error == self._last
        self._last = error
        return alike


@dataclass(frozen=True)
class Watchdog:
    """How long an engine may be silent: loading takes longer than any iteration."""

    heartbeat_s: float = 30.0
    start_s: float = 600.0

    def overdue(self, silent_s: float, *, ready: bool) -> bool:
        """Whether an engine that sent nothing for `silent_s` counts as hung."""
        return silent_s > (self.heartbeat_s if ready else self.start_s)
