"""When an LS request's next token is due. Times are seconds of one monotonic clock."""

from __future__ import annotations

from dataclasses import dataclass

USABLE_CREDIT_TOKENS = 2.0  # tokens sent early buy at most this many token times at once


@dataclass(slots=True)
class Deadlines:
    """One request against its SLO. The first token is due at arrival + TTFT, token k after it at
    first token + k × TPOT, since TPOT is judged as a mean."""

    arrival_s: float
    ttft_s: float
    tpot_s: float
    first_token_s: float | None = None
    further_tokens: int = 0  # sent after the first

    def emitted(self, now_s: float, tokens: int = 1) -> None:
        """Tokens were sent."""
        if self.first_token_s is None:
            self.first_token_s = now_s
            tokens -= 1
        self.further_tokens += tokens

    def next_s(self, now_s: float, tokens_left: int, fastest_s: float) -> float | None:
        """When the next token must be there; None when the SLO can no longer be attained.

        `tokens_left` is how many may follow at most, `fastest_s` the least time one takes.
        """
        if self.first_token_s is None:
            due = self.arrival_s + self.ttft_s
            return due if now_s <= due else None
        if self.first_token_s > self.arrival_s + self.ttft_s:
            return None
        last_s = self.first_token_s + (self.further_tokens + tokens_left) * self.tpot_s
        if now_s + tokens_left * fastest_s > last_s:
            return None
        due = self.first_token_s + (self.further_tokens + 1) * self.tpot_s
        return min(max(due, now_s), now_s + USABLE_CREDIT_TOKENS * self.tpot_s)
