"""Drafts: guessed tokens that travel behind an offloaded row and are verified in one host pass.

A draft is kept while it equals the token the model chooses at its place. For a guess that does not
depend on the model's random numbers this is exact for greedy decoding and keeps the distribution
when sampling (speculative sampling with a deterministic proposal; Leviathan et al., 2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class DraftSource(Protocol):
    """Guesses the tokens that follow, and learns from what became of the guesses."""

    def propose(self, handle: int, tokens: Sequence[int], longest: int) -> list[int]:
        """At most `longest` guesses for what follows all known `tokens` of a request."""

    def judged(self, handle: int, proposed: int, accepted: int) -> None:
        """Of the last `proposed` guesses for this request so many stood."""

    def forget(self, handle: int) -> None:
        """The request has ended."""

    def binds(self, ceiling: str) -> None:
        """Which ceiling binds BE throughput now (`scheduling/ceiling.py`)."""


class NoDrafts:
    """Guesses nothing: every hop carries one token."""

    def propose(self, handle: int, tokens: Sequence[int], longest: int) -> list[int]:
        """No guess."""
        return []

    def judged(self, handle: int, proposed: int, accepted: int) -> None:
        """Nothing to learn."""

    def forget(self, handle: int) -> None:
        """Nothing is kept."""

    def binds(self, ceiling: str) -> None:
        """Nothing depends on it."""


def accepted_length(draft: Sequence[int], chosen: Sequence[int]) -> int:
    """How many of the chosen tokens stand: those after right guesses, and one more.

    `chosen[i]` is the model's token after the last known token and `draft[:i]`.
    """
    right = 0
    while right < len(draft) and draft[right] == chosen[right]:
        right += 1
    return right + 1
