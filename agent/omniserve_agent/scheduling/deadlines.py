"""When an LS request's next token is due. Times are seconds of one monotonic clock."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf

USABLE_CREDIT_TOKENS = 2.0  # tokens sent early buy at most this many token times at once
SAVED_SHARE = 0.16  # of a request's time since its first token: the most it saves for bursts
SAVED_TOKENS = 8.0  # token times that it saves at most


@dataclass(slots=True, eq=False)
class Deadlines:
    """One request against its SLO. The first token is due at arrival + TTFT, token k after it at
    first token + k × TPOT, since TPOT is judged as a mean."""

    arrival_s: float
    ttft_s: float
    tpot_s: float
    first_token_s: float | None = None
    further_tokens: int = 0  # sent after the first
    ahead: int = 0  # tokens on their way back: the next plan takes them as sent
    due_s: float = field(init=False)  # of the next token, credit not bounded; inf once TTFT is lost
    saving_s: float = 0.0  # what it saves at most for bursts of prompts

    def __post_init__(self) -> None:
        self.due_s = self.arrival_s + self.ttft_s

    def launched(self, expected_s: float) -> None:
        """A token will be there at about this time: what is planned meanwhile is for the next."""
        first = self.first_token_s is None and not self.ahead
        self.due_s = (expected_s if first else self.due_s) + self.tpot_s
        self.ahead += 1

    def emitted(self, now_s: float, tokens: int = 1, ahead: int = 0) -> None:
        """Tokens were sent; `ahead` are still on their way."""
        first_s, self.ahead = self.first_token_s, ahead
        if first_s is None:
            lost = now_s > self.arrival_s + self.ttft_s
            first_s = self.first_token_s = now_s
            tokens -= 1
            if lost:
                self.due_s = inf
        self.further_tokens += tokens
        if self.due_s < inf:
            next_token = self.further_tokens + ahead + 1
            saved = SAVED_SHARE * next_token
            self.due_s = first_s + next_token * self.tpot_s
            self.saving_s = (saved if saved < SAVED_TOKENS else SAVED_TOKENS) * self.tpot_s

    def next_s(self, now_s: float, tokens_left: int, fastest_s: float) -> float | None:
        """When the next token must be there; None when the SLO can no longer be attained.

        `tokens_left` is how many may follow at most, `fastest_s` the least time one takes.
        """
        if self.first_token_s is None:
            return self.due_s if now_s <= self.due_s else None
        if not self.reachable(now_s, tokens_left, fastest_s):
            return None
        return min(max(self.due_s, now_s), now_s + USABLE_CREDIT_TOKENS * self.tpot_s)

    def attained(self, last_token_s: float) -> bool:
        """Whether a request that ended with a token at `last_token_s` kept both of its times."""
        if self.first_token_s is None or self.first_token_s > self.arrival_s + self.ttft_s:
            return False
        return last_token_s - self.first_token_s <= self.further_tokens * self.tpot_s

    def reachable(self, now_s: float, tokens_left: int, fastest_s: float) -> bool:
        """Whether the mean of a request that decodes can still come down to its TPOT."""
        if self.due_s == inf:
            return False
        return now_s + tokens_left * fastest_s <= self.due_s + (tokens_left - 1) * self.tpot_s
