"""A first look at co-location: one LS stream alone and beside offloaded BE requests."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import aiohttp

import statusz
from spread import spread
from streams import Stream, StreamError, prompts, stream

BE_STREAMS = 8
BE_OUTPUT_TOKENS = 2000  # longer than a round: they end by being cancelled
LS_OUTPUT_TOKENS = 128
BE_TIMEOUT_S = 120.0


def first_look(
    url: str, rounds: int, prompt_tokens: int, seed: int, vocabulary: int
) -> dict[str, Any]:
    """TPOT of one LS stream, alone and beside BE in turn, and BE's tokens per second meanwhile."""
    look = _Look(url, prompt_tokens, vocabulary, random.Random(seed))
    return asyncio.run(look.take(rounds))


class _Look:
    def __init__(self, url: str, tokens: int, vocabulary: int, generator: random.Random) -> None:
        self._url, self._tokens, self._vocabulary = url, tokens, vocabulary
        self._generator = generator
        self._alone: list[Stream] = []
        self._beside: list[Stream] = []
        self._be_tokens_per_s: list[float] = []
        self._be_alone_tokens_per_s: list[float] = []
        self._offloaded: list[int] = []

    async def take(self, rounds: int) -> dict[str, Any]:
        timeout = aiohttp.ClientTimeout(total=600)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            await self._ls(session)
            for _ in range(rounds):
                self._alone += [await self._ls(session)]
                async with self._be_running(session):
                    await self._beside_be(session)
        return self._report()

    async def _ls(self, session: aiohttp.ClientSession) -> Stream:
        prompt = self._prompts(1)[0]
        return await stream(session, self._url, "chat", prompt, LS_OUTPUT_TOKENS)

    def _prompts(self, count: int) -> list[list[int]]:
        return prompts(self._generator, count, self._tokens, self._vocabulary)

    async def _beside_be(self, session: aiohttp.ClientSession) -> None:
        before, since_s = await statusz.read(session, self._url), time.perf_counter()
        await asyncio.sleep(2)
        after = await statusz.read(session, self._url)
        seconds = time.perf_counter() - since_s
        self._be_alone_tokens_per_s.append((after.be_tokens - before.be_tokens) / seconds)
        before, since_s = await statusz.read(session, self._url), time.perf_counter()
        self._beside.append(await self._ls(session))
        after = await statusz.read(session, self._url)
        seconds = time.perf_counter() - since_s
        self._be_tokens_per_s.append((after.be_tokens - before.be_tokens) / seconds)
        self._offloaded.append(after.engine.offloaded_requests)

    @contextlib.asynccontextmanager
    async def _be_running(self, session: aiohttp.ClientSession) -> AsyncIterator[None]:
        """BE streams, all past their first token; cancelled at the end."""
        begun = [asyncio.Event() for _ in range(BE_STREAMS)]
        tasks = [
            asyncio.create_task(
                stream(session, self._url, "batch", prompt, BE_OUTPUT_TOKENS, event)
            )
            for prompt, event in zip(self._prompts(BE_STREAMS), begun, strict=True)
        ]
        try:
            await self._all_begun(begun)
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._none_left(session)

    async def _all_begun(self, begun: Sequence[asyncio.Event]) -> None:
        try:
            async with asyncio.timeout(BE_TIMEOUT_S):
                await asyncio.gather(*(event.wait() for event in begun))
        except TimeoutError:
            raise StreamError(
                f"{self._url}: {sum(event.is_set() for event in begun)} of {BE_STREAMS} BE "
                f"requests began within {BE_TIMEOUT_S} s; look at /statusz"
            ) from None

    async def _none_left(self, session: aiohttp.ClientSession) -> None:
        async with asyncio.timeout(BE_TIMEOUT_S):
            while (await statusz.read(session, self._url)).engine.offloaded_requests:
                await asyncio.sleep(0.2)

    def _report(self) -> dict[str, Any]:
        alone = [s.tpot_ms for s in self._alone]
        beside = [s.tpot_ms for s in self._beside]
        ratios = [ours / its for ours, its in zip(beside, alone, strict=True)]
        return {
            "ls_streams": 1,
            "be_requests": BE_STREAMS,
            "prompt_tokens": self._tokens,
            "rounds": len(alone),
            "offloaded_requests_seen": min(self._offloaded),
            **spread("ls_tpot_ms_alone", alone),
            **spread("ls_tpot_ms_beside_be", beside),
            **spread("ls_tpot_ratio", ratios),
            **spread("be_tokens_per_s_beside_ls", self._be_tokens_per_s),
            **spread("be_tokens_per_s_alone", self._be_alone_tokens_per_s),
        }
