"""Log probabilities in the two shapes of the OpenAI API."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from omniserve_agent.engine.messages import TokenLogprob
from omniserve_agent.http.choice import ScoredToken
from omniserve_agent.http.tokenizer import ModelTokenizer

# JSON has no infinity; this is what clients of the API know as "impossible".
IMPOSSIBLE = -9999.0


def completion_logprobs(
    tokenizer: ModelTokenizer, scored: Sequence[ScoredToken], top_count: int
) -> dict[str, Any]:
    """Parallel lists; offsets count characters of the choice's own text."""
    return {
        "tokens": [_key(tokenizer, token.chosen) for token in scored],
        "token_logprobs": [_finite(token.chosen) for token in scored],
        "top_logprobs": [_by_text(tokenizer, token) for token in scored] if top_count else None,
        "text_offset": [token.text_offset for token in scored],
    }


def chat_logprobs(tokenizer: ModelTokenizer, scored: Sequence[ScoredToken]) -> dict[str, Any]:
    """One object per token, with its bytes."""
    return {
        "content": [
            _described(tokenizer, token.chosen)
            | {"top_logprobs": [_described(tokenizer, other) for other in token.top]}
            for token in scored
        ],
        "refusal": None,
    }


def _by_text(tokenizer: ModelTokenizer, token: ScoredToken) -> dict[str, float]:
    """The likeliest tokens and the chosen one, each with a key of its own: `tokens` has the chosen
    one's, and of others with the same text the ids tell."""
    keys = {_key(tokenizer, token.chosen): token.chosen.token_id}
    found: dict[str, float] = {}
    for candidate in (*token.top, token.chosen):
        key = _key(tokenizer, candidate)
        if keys.setdefault(key, candidate.token_id) != candidate.token_id:
            key = f"token_id:{candidate.token_id}"
        found[key] = _finite(candidate)
    return found


def _key(tokenizer: ModelTokenizer, token: TokenLogprob) -> str:
    """The token's text, or `bytes:\\xf0\\x9f` where it is only part of a character."""
    raw = tokenizer.token_bytes(token.token_id)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def _described(tokenizer: ModelTokenizer, token: TokenLogprob) -> dict[str, Any]:
    return {
        "token": tokenizer.token_text(token.token_id),
        "logprob": _finite(token),
        "bytes": list(tokenizer.token_bytes(token.token_id)),
    }


def _finite(token: TokenLogprob) -> float:
    return max(token.logprob, IMPOSSIBLE)
