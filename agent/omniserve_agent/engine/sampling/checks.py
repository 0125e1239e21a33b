"""Which sampling parameters can be honoured."""

from __future__ import annotations

import math

from omniserve_agent.engine.messages import SamplingParams

MAX_LOGPROBS = 20
RANGES = {
    "temperature": (0.0, 100.0),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
    "repetition_penalty": (0.01, 100.0),
}


def check_params(params: SamplingParams, vocab_size: int) -> None:
    """Raise ValueError naming the first parameter that cannot be honoured."""
    for name, (low, high) in RANGES.items():
        value = getattr(params, name)
        if not low <= value <= high:  # also catches NaN
            raise ValueError(f"{name} is {value}; it must lie between {low} and {high}")
    if params.top_k < 0:
        raise ValueError(f"top_k is {params.top_k}; it must be 0 (off) or more")
    if params.logprobs is not None and not 0 <= params.logprobs <= min(MAX_LOGPROBS, vocab_size):
        raise ValueError(f"logprobs is {params.logprobs}; it must lie between 0 and {MAX_LOGPROBS}")
    for token_id, bias in params.logit_bias.items():
        if not 0 <= token_id < vocab_size:
            raise ValueError(f"logit_bias names token {token_id}; ids are 0 to {vocab_size - 1}")
        if not math.isfinite(bias):
            raise ValueError(f"logit_bias of token {token_id} is {bias}; it must be finite")
