"""Drafts: guessed tokens that travel behind an offloaded row and are verified in one host pass.

A draft is kept while it equals the token the model chooses at its place. For a guess that does not
depend on the model's random numbers this is exact for greedy decoding and keeps the distribution
when sampling (speculative sampling with a deterministic proposal; Leviathan et al., 2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class DraftSource(Protocol):
    """Guesses the tokens that follow."""

    def propose(self, tokens: Sequence[int], max_tokens: int) -> list[int]:
        """At most `max_tokens` guesses for what follows `tokens`."""


class NoDrafts:
    """Guesses nothing: every hop carries one token."""

    def propose(self, tokens: Sequence[int], max_tokens: int) -> list[int]:
        """No guess."""
        return []


def accepted_length(draft: Sequence[int], chosen: Sequence[int]) -> int:
    """How many of the chosen tokens stand: those after right guesses, and one more.

    `chosen[i]` is the model's token after the last known token and `draft[:i]`.
    """
    right = 0
    while right < len(draft) and draft[right] == chosen[right]:
        right += 1
    return right + 1
