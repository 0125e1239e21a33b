"""Several choices of one request, read as one stream of chunks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from math import inf

from omniserve_agent.engine.messages import Submit
from omniserve_agent.http.choice import ChoiceText, Chunk
from omniserve_agent.serving import Backend, EngineUnavailableError

QUEUED_CHUNKS = 64
SOONEST_S = 1e-3  # a timer that is due looks again: not before the reader had its turn


class Silence:
    """How long a choice waits for its engine, and may at most, in seconds of the event loop."""

    def __init__(self, most_s: float) -> None:
        self._most_s = most_s
        self._since_s: float | None = None

    def begins(self, now_s: float) -> None:
        """The choice waits for an event."""
        self._since_s = now_s

    def ends(self) -> None:
        """The event is there."""
        self._since_s = None

    @property
    def due_s(self) -> float:
        """When it will have lasted too long; inf while nothing is waited for."""
        return inf if self._since_s is None else self._since_s + self._most_s


async def choice_chunks(
    backend: Backend, submit: Submit, text: ChoiceText, silence: Silence
) -> AsyncGenerator[Chunk]:
    """Chunks of one request, the last with `finish_reason`; then the engine's work is cancelled.

    Raises what `Backend.stream` raises; `silence` is for the reader to watch.
    """
    time = asyncio.get_running_loop().time
    async with aclosing(backend.stream(submit)) as events:
        while True:
            silence.begins(time())
            event = await anext(events, None)
            silence.ends()
            if event is None:
                raise EngineUnavailableError("the engine ended the request without a result")
            chunk = text.push(event)
            if chunk is not None:
                yield chunk
                if chunk.finish_reason is not None:
                    return


class Merge:
    """Runs the choices' generators, each in a task, into one bounded queue.

    One timer watches all waits and is set anew only when it has run out: a time-out around every
    wait was a quarter of the CPU time that an event cost (`bench/delivery.py`).
    """

    def __init__(
        self, choices: Sequence[AsyncGenerator[Chunk]], silences: Sequence[Silence]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Chunk | Exception | None] = asyncio.Queue(QUEUED_CHUNKS)
        self._failure: Exception | None = None
        self._silences = silences
        self._quiet_s = inf  # when the reader wants to hear that nothing has come
        self._timer: asyncio.TimerHandle | None = None
        self._tasks = [asyncio.create_task(self._pump(choice)) for choice in choices]
        self.unfinished = len(choices)

    async def next(self, timeout_s: float) -> Chunk | None:
        """The next chunk, or None after `timeout_s` without one; raises what a choice raised,
        TimeoutError when one has waited too long for its engine, and EngineUnavailableError if
        nothing can come any more."""
        if self._failure is not None:
            raise self._failure
        self._quiet_s = self._loop.time() + timeout_s
        if self._timer is None or self._timer.when() > self._quiet_s:
            self._arm()
        item = await self._queue.get()
        self._quiet_s = inf
        if item is None:
            if self._queue.empty() and all(task.done() for task in self._tasks):
                raise EngineUnavailableError("the engine dropped the request")
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
        if self._timer is not None:
            self._timer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _due_s(self) -> float:
        return min(silence.due_s for silence in self._silences)

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        at_s = min(self._quiet_s, self._due_s())
        self._timer = None
        if at_s < inf:
            soonest_s = self._loop.time() + SOONEST_S
            self._timer = self._loop.call_at(max(at_s, soonest_s), self._watch)

    def _watch(self) -> None:
        now_s = self._loop.time()
        if now_s >= self._due_s():
            self.fail(TimeoutError("the engine is silent"))
            return
        if now_s >= self._quiet_s and self._queue.empty():
            self._quiet_s = inf
            self._queue.put_nowait(None)
        self._arm()

    async def _pump(self, choice: AsyncGenerator[Chunk]) -> None:
        async with aclosing(choice):
            try:
                async for chunk in choice:
                    await self._queue.put(chunk)
            except Exception as error:
                await self._queue.put(error)
