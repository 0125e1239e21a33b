"""What a node has done since its start."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Counted:
    """Times in seconds."""

    iterations: int = 0
    waited: int = 0  # iterations that waited for the host at every layer
    busy_s: float = 0.0  # of the device
    be_tokens: int = 0
    be_host_tokens: int = 0  # of `be_tokens`, by rows that the host attended for
    be_prefill_tokens: int = 0
    hops: int = 0  # that came to their end
    guessed: int = 0  # tokens, in them
    lanes: int = 0  # that rows in flight could have, at each layer of an iteration
