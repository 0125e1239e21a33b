"""Bounds and intervals of the HTTP server."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class HttpSettings:
    """Times in seconds. A silence limit is the longest wait for one request's next token."""

    max_body_bytes: int = 8 << 20
    max_requests: int = 2048  # in flight, all services together; beyond: 429
    max_choices: int = 128  # prompts × n of one request
    keep_alive_comment_s: float = 5.0
    write_timeout_s: float = 60.0  # a client that reads nothing for so long is gone
    ls_silence_s: float = 120.0
    be_silence_s: float = 6 * 3600.0
    probe_timeout_s: float = 20.0  # /readyz/NAMESPACE/NAME
    idle_connection_s: float = 60.0
    requests_per_connection: int = 100
    tokenizer_threads: int = 2
    threaded_tokenizing_chars: int = 8192  # longer texts are tokenised off the event loop
    cors_origins: tuple[str, ...] = ()  # whose pages may use the API; "*": any
