"""Several choices of one request, read as one stream of chunks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from omniserve_agent.engine.messages import Submit
from omniserve_agent.http.choice import ChoiceText, Chunk
from omniserve_agent.serving import Backend, EngineUnavailableError

QUEUED_CHUNKS = 64


async def choice_chunks(
    backend: Backend, submit: Submit, text: ChoiceText, silence_s: float
) -> AsyncGenerator[Chunk]:
    """Chunks of one request, the last with `finish_reason`; then the engine's work is cancelled.

    TimeoutError when no event comes for `silence_s`; else what `Backend.stream` raises.
    """
    async with aclosing(backend.stream(submit)) as events:
        while True:
            async with asyncio.timeout(silence_s):
                event = await anext(events, None)
            if event is None:
                raise EngineUnavailableError("the engine ended the request without a result")
            chunk = text.push(event)
            if chunk is not None:
                yield chunk
                if chunk.finish_reason is not None:
                    return


class Merge:
    """Runs the choices' generators, each in a task, into one bounded queue."""

    def __init__(self, choices: Sequence[AsyncGenerator[Chunk]]) -> None:
        self._queue: asyncio.Queue[Chunk | Exception] = asyncio.Queue(QUEUED_CHUNKS)
        self._failure: Exception | None = None
        self._tasks = [asyncio.create_task(self._pump(choice)) for choice in choices]
        self.unfinished = len(choices)

    async def next(self, timeout_s: float) -> Chunk | None:
        """The next chunk, or None after `timeout_s` without one; raises what a choice raised, and
        EngineUnavailableError if nothing can come any more."""
        if self._failure is not None:
            raise self._failure
        try:
            async with asyncio.timeout(timeout_s):
                item = await self._queue.get()
        except TimeoutError:
            if self._queue.empty() and all(task.done() for task in self._tasks):
                raise EngineUnavailableError("the engine dropped the request") from None
            return None
        if isinstance(item, Exception):
            raise item
        self.unfinished -= item.finish_reason is not None
        return item

    def fail(self, error: Exception) -> None:
        """End the stream with `error`, at the next chunk at the latest."""
        self._failure = error
        if not self._queue.full():
            self._queue.put_nowait(error)

    async def close(self) -> None:
        """Cancel what still runs, and wait until it has let go."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _pump(self, choice: AsyncGenerator[Chunk]) -> None:
        async with aclosing(choice):
            try:
                async for chunk in choice:
                    await self._queue.put(chunk)
            except Exception as error:
                await self._queue.put(error)
