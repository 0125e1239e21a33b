"""Prompt lookup: what followed the last few tokens before will follow them again.

Summaries, extractions and code repeat their prompt; an n-gram index over the request's own tokens
finds where (Saxena, 2023). No model is asked, so a guess costs a dictionary lookup.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from omniserve_agent.scheduling.draft_length import ROW_COST, Acceptance, best_length

NGRAMS = (3, 2)  # the longest match wins
PROBE_HOPS = 32  # after so many hops without a guess one is made all the same


@dataclass(slots=True)
class _Track:
    """One request: where each n-gram was last followed by something, and how guesses fared."""

    ends: dict[tuple[int, ...], int] = field(default_factory=dict)
    indexed: int = 0  # tokens whose n-grams are in `ends`
    acceptance: Acceptance = field(default_factory=Acceptance)
    hops_without: int = 0

    def index(self, tokens: Sequence[int]) -> None:
        """Take in all n-grams that something follows."""
        for end in range(max(self.indexed, 1), len(tokens)):
            for size in NGRAMS:
                if end >= size:
                    self.ends[tuple(tokens[end - size : end])] = end
        self.indexed = len(tokens)

    def following(self, tokens: Sequence[int], count: int) -> list[int]:
        """What followed the longest n-gram that ends `tokens`; empty where it is new."""
        for size in NGRAMS:
            end = self.ends.get(tuple(tokens[-size:])) if len(tokens) >= size else None
            if end is not None:
                return list(tokens[end : end + count])
        return []


@dataclass(eq=False)
class PromptLookup:
    """A `DraftSource`. Its length follows the acceptance of each request and the ceiling."""

    row_cost: float = ROW_COST["none"]
    _tracks: dict[int, _Track] = field(default_factory=dict)

    def propose(self, handle: int, tokens: Sequence[int], longest: int) -> list[int]:
        """See `DraftSource`."""
        track = self._tracks.setdefault(handle, _Track())
        track.index(tokens)
        length = best_length(track.acceptance.share, self.row_cost, longest)
        if length == 0 and track.hops_without >= PROBE_HOPS:
            length = 1
        guess = track.following(tokens, length) if length else []
        track.hops_without = 0 if guess else track.hops_without + 1
        return guess

    def judged(self, handle: int, proposed: int, accepted: int) -> None:
        """See `DraftSource`."""
        track = self._tracks.get(handle)
        if track is not None:
            track.acceptance.observe(proposed, accepted)

    def forget(self, handle: int) -> None:
        """See `DraftSource`."""
        self._tracks.pop(handle, None)

    def binds(self, ceiling: str) -> None:
        """See `DraftSource`."""
        self.row_cost = ROW_COST[ceiling]
