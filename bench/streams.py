"""A streaming client for OpenAI servers, and what its event times say.

Both sides of a comparison are measured by this code, over HTTP, with the same token ids.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import aiohttp
import msgspec

REQUEST_TIMEOUT_S = 300.0
FIRST_PLAIN_TOKEN = 1000  # smaller ids are control tokens and single bytes


@dataclass(frozen=True)
class Stream:
    """One finished request. Times in seconds on the clock of `time.perf_counter`."""

    sent_s: float
    events_s: Sequence[float]  # one per event with text
    tokens: int  # as the server counted them

    @property
    def ttft_ms(self) -> float:
        """Time to the first event."""
        return 1e3 * (self.events_s[0] - self.sent_s)

    @property
    def tpot_ms(self) -> float:
        """Mean time per token after the first."""
        return 1e3 * (self.events_s[-1] - self.events_s[0]) / (self.tokens - 1)

    def tokens_between(self, start_s: float, end_s: float) -> float:
        """Tokens that came in a time span; an event carries as many as the others do."""
        later = sum(start_s < at_s <= end_s for at_s in self.events_s[1:])
        return later * (self.tokens - 1) / (len(self.events_s) - 1)


class StreamError(Exception):
    """A server answered something else than a whole stream."""


class _Choice(msgspec.Struct):
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    completion_tokens: int


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None


def prompts(generator: random.Random, count: int, tokens: int, vocabulary: int) -> list[list[int]]:
    """Random token ids: no two prompts share a prefix, so no cache helps either side."""
    ids = range(FIRST_PLAIN_TOKEN, vocabulary)
    return [generator.choices(ids, k=tokens) for _ in range(count)]


async def stream(
    session: aiohttp.ClientSession,
    url: str,
    model: str,
    prompt: Sequence[int],
    tokens: int,
    begun: asyncio.Event | None = None,
) -> Stream:
    """One greedy completion of exactly `tokens` tokens; `begun` is set by the first. Raises
    StreamError."""
    body = {
        "model": model,
        "prompt": list(prompt),
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    sent_s, events_s, counted = time.perf_counter(), [], 0
    async with session.post(f"{url}/v1/completions", json=body) as response:
        if response.status != 200:
            raise StreamError(f"{url}: status {response.status}: {await response.text()}")
        async for line in response.content:
            now_s = time.perf_counter()
            if not line.startswith(b"data: {"):
                continue
            event = msgspec.json.decode(line[6:], type=_Event)
            if event.choices:
                events_s.append(now_s)
                if begun is not None:
                    begun.set()
            if event.usage is not None:
                counted = event.usage.completion_tokens
    if counted != tokens or not events_s:
        raise StreamError(f"{url}: {counted} tokens in {len(events_s)} events, {tokens} expected")
    return Stream(sent_s, events_s, counted)


async def streams(
    url: str, model: str, batch: Sequence[Sequence[int]], tokens: int
) -> list[Stream]:
    """All prompts at once."""
    timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        tasks = [stream(session, url, model, prompt, tokens) for prompt in batch]
        return await asyncio.gather(*tasks)


def prefill_tokens_per_s(finished: Sequence[Stream], prompt_tokens: int) -> float:
    """Of streams that were sent together and put out one token each."""
    seconds = max(s.events_s[0] for s in finished) - min(s.sent_s for s in finished)
    return prompt_tokens * len(finished) / seconds


def decode_tokens_per_s(finished: Sequence[Stream]) -> float:
    """While all streams decode: from the last first token to the first last one."""
    start_s = max(s.events_s[0] for s in finished)
    end_s = min(s.events_s[-1] for s in finished)
    if end_s <= start_s:
        raise StreamError(
            "the first stream ended before the last one began; ask for more output tokens"
        )
    return sum(s.tokens_between(start_s, end_s) for s in finished) / (end_s - start_s)


def median_tpot_ms(finished: Sequence[Stream]) -> float:
    """Over streams."""
    return statistics.median(s.tpot_ms for s in finished)
