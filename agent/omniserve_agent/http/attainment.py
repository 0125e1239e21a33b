"""Attainment, pure: which requests count as offered, and which of those attained."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from omniserve_agent.serving import Slo


class Outcome(StrEnum):
    """How a request ended."""

    FINISHED = "finished"
    REFUSED = "refused"  # for capacity: 429
    FAILED = "failed"  # by us: 5xx or time-out
    CANCELLED = "cancelled"  # by the client
    CALLER_ERROR = "caller_error"
    PAUSED = "paused"  # the owner paused the service


@dataclass(frozen=True)
class Observation:
    """One finished request. Times in seconds of one monotonic clock.

    `first_s` and `last_s` are when the first and the last event with output tokens were written
    (for an answer in one piece: when they could have been).
    """

    outcome: Outcome
    received_s: float
    ended_s: float
    first_s: float | None = None
    last_s: float | None = None
    output_tokens: int = 0

    @property
    def ttft_ms(self) -> float | None:
        """Time to first token, or None without one."""
        return None if self.first_s is None else (self.first_s - self.received_s) * 1e3

    @property
    def tpot_ms(self) -> float | None:
        """Mean time per output token after the first, or None with fewer than two."""
        if self.first_s is None or self.last_s is None or self.output_tokens < 2:
            return None
        return (self.last_s - self.first_s) * 1e3 / (self.output_tokens - 1)


def is_offered(seen: Observation, slo: Slo | None) -> bool:
    """Whether the request counts in the denominator."""
    if seen.outcome is Outcome.CANCELLED:
        return slo is not None and _deadline_passed(seen, slo)
    return seen.outcome in (Outcome.FINISHED, Outcome.REFUSED, Outcome.FAILED)


def is_attained(seen: Observation, slo: Slo | None) -> bool:
    """Whether the request finished within both times; without an SLO nothing attains."""
    if slo is None or seen.outcome is not Outcome.FINISHED:
        return False
    return not ttft_missed(seen, slo) and not tpot_missed(seen, slo)


def ttft_missed(seen: Observation, slo: Slo) -> bool:
    """First token late; a request that finished without any token is judged by its end."""
    ttft_ms = seen.ttft_ms
    if ttft_ms is None:
        ttft_ms = (seen.ended_s - seen.received_s) * 1e3
    return ttft_ms > slo.ttft_ms


def tpot_missed(seen: Observation, slo: Slo) -> bool:
    """Tokens after the first too slow on average; never for one-token outputs."""
    return seen.tpot_ms is not None and seen.tpot_ms > slo.tpot_ms


def _deadline_passed(seen: Observation, slo: Slo) -> bool:
    """At the cancellation: the first token was late, or the next one overdue.

    Token k (the first is 0) is due at first + k × TPOT.
    """
    if ttft_missed(seen, slo):
        return True
    if seen.first_s is None:
        return False
    due_s = seen.first_s + seen.output_tokens * slo.tpot_ms / 1e3
    return seen.ended_s > due_s
