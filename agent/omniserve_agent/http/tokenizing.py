"""Tokenizers shared by services, and threads that keep long texts off the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from omniserve_agent.http.settings import HttpSettings
from omniserve_agent.http.tokenizer import ModelTokenizer

Result = TypeVar("Result")
MESSAGE_CHARS = 32  # what a template writes around a message, at least in time


class Tokenizing:
    """Loads each tokenizer directory once. Work waits for one of a few threads; how much can wait
    is bounded by the number of requests in flight."""

    def __init__(self, settings: HttpSettings) -> None:
        self._threaded_chars = settings.threaded_tokenizing_chars
        self._pool = ThreadPoolExecutor(settings.tokenizer_threads, "tokenizing")
        self._loaded: dict[str, asyncio.Task[ModelTokenizer]] = {}

    async def get(self, directory: str) -> ModelTokenizer:
        """The directory's tokenizer; TokenizerError if it cannot be loaded (tried anew then)."""
        task = self._loaded.get(directory)
        if task is None or (task.done() and (task.cancelled() or task.exception())):
            task = asyncio.create_task(self._run(lambda: ModelTokenizer(directory)))
            self._loaded[directory] = task
        return await asyncio.shield(task)

    async def encode(self, tokenizer: ModelTokenizer, texts: Sequence[str]) -> list[list[int]]:
        """Ids of a request's prompts. Many short ones hold others up as a long one does."""

        def work() -> list[list[int]]:
            return [tokenizer.encode(text) for text in texts]

        return await self._inline_if_short(sum(map(len, texts)), work)

    async def encode_chat(
        self, tokenizer: ModelTokenizer, messages: Sequence[Mapping[str, str]]
    ) -> list[int]:
        """Ids of a conversation; ChatTemplateError as in ModelTokenizer."""
        chars = sum(MESSAGE_CHARS + sum(map(len, one.values())) for one in messages)
        return await self._inline_if_short(chars, lambda: tokenizer.encode_chat(messages))

    def close(self) -> None:
        """Drop what waits; running work ends by itself."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _inline_if_short(self, chars: int, work: Callable[[], Result]) -> Result:
        return work() if chars < self._threaded_chars else await self._run(work)

    async def _run(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)
