"""One choice's way from token events to text: detokenise, stop, attach log probabilities."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from omniserve_agent.engine.messages import TokenEvent, TokenLogprob
from omniserve_agent.http.detokenizer import Detokenizer
from omniserve_agent.http.stop import StopFilter


@dataclass(frozen=True)
class ScoredToken:
    """A token's log probability, the likeliest tokens beside it, and where its text begins."""

    chosen: TokenLogprob
    top: list[TokenLogprob]
    text_offset: int


@dataclass(frozen=True)
class Chunk:
    """Something to show of choice `index`. `tokens` counts all tokens since the last chunk;
    `chosen_s` is when the engine knew the first of them."""

    index: int
    text: str = ""
    tokens: int = 0
    scored: list[ScoredToken] = field(default_factory=list)
    finish_reason: Literal["stop", "length"] | None = None
    cached_tokens: int = 0
    chosen_s: float | None = None


class ChoiceText:
    """Turns the token events of one choice into chunks."""

    def __init__(self, index: int, detokenizer: Detokenizer, stops: Sequence[str]) -> None:
        self._index = index
        self._detokenizer = detokenizer
        self._stop = StopFilter(stops)
        self._decoded_chars = 0
        self._emitted_chars = 0
        self._tokens = 0
        self._cached_tokens = 0
        self._chosen_s: float | None = None
        self._scored: deque[ScoredToken] = deque()

    def push(self, event: TokenEvent) -> Chunk | None:
        """What the event makes visible; None while all of it is held back."""
        self._cached_tokens += event.cached_tokens
        self._chosen_s = self._chosen_s or event.chosen_s
        text, stopped = "", False
        for position, token_id in enumerate(event.token_ids):
            self._tokens += 1
            self._score(event, position)
            piece, stopped = self._pass_on(self._detokenizer.push(token_id))
            text += piece
            if stopped:
                return self._chunk(text, "stop", self._visible())
        if event.finish_reason is None:
            visible = self._visible()
            return self._chunk(text, None, visible) if text or visible else None
        piece, stopped = self._pass_on(self._detokenizer.flush())
        if stopped:
            return self._chunk(text + piece, "stop", self._visible())
        scored = list(self._scored)
        self._scored.clear()
        return self._chunk(text + piece + self._stop.flush(), event.finish_reason, scored)

    def _pass_on(self, piece: str) -> tuple[str, bool]:
        self._decoded_chars += len(piece)
        text, stopped = self._stop.push(piece)
        self._emitted_chars += len(text)
        return text, stopped

    def _score(self, event: TokenEvent, position: int) -> None:
        if event.logprobs is None:
            return
        top = event.top_logprobs[position] if event.top_logprobs else []
        self._scored.append(ScoredToken(event.logprobs[position], top, self._decoded_chars))

    def _visible(self) -> list[ScoredToken]:
        """Scores of the tokens whose text has begun to be emitted; the rest waits or is stopped."""
        visible = []
        while self._scored and self._scored[0].text_offset < self._emitted_chars:
            visible.append(self._scored.popleft())
        return visible

    def _chunk(
        self, text: str, reason: Literal["stop", "length"] | None, scored: list[ScoredToken]
    ) -> Chunk:
        tokens, self._tokens = self._tokens, 0
        cached, self._cached_tokens = self._cached_tokens, 0
        chosen_s, self._chosen_s = self._chosen_s, None
        return Chunk(self._index, text, tokens, scored, reason, cached, chosen_s)
