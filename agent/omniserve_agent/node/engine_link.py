"""The two sockets of one engine life: messages out, messages in. A new life gets new endpoints.

So nothing a dead engine sent can arrive later. The directory must be private (mode 0700): whoever
can open the endpoints can talk to the engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import msgspec
import zmq
import zmq.asyncio

from omniserve_agent.engine.messages import FromEngine, Outputs, Submit, ToEngine
from omniserve_agent.serving import RequestRefusedError

_HIGH_WATER_MESSAGES = 4096
_LARGEST_MESSAGE_BYTES = 64 << 20
_QUIET_MS = 200
_DRAIN_S = 2.0
PASSES_TO_A_CLIENT = 4  # of the event loop, from a message to the write


@dataclass(frozen=True)
class Endpoints:
    """Where an engine connects."""

    to_engine: str
    from_engine: str


class EngineLink:
    """Bound sockets; use as a context manager, and `run` to move messages."""

    def __init__(self, context: zmq.asyncio.Context, directory: Path, name: str, life: int) -> None:
        self._paths = [directory / f"{name}-{life}-{way}" for way in ("to", "from")]
        self.endpoints = Endpoints(*(f"ipc://{path}" for path in self._paths))
        self._outbox: asyncio.Queue[ToEngine] = asyncio.Queue()  # bounded in `send`
        self._push = context.socket(zmq.PUSH)
        self._pull = context.socket(zmq.PULL)
        self._decoder = msgspec.msgpack.Decoder(FromEngine)
        self._encoder = msgspec.msgpack.Encoder()

    def __enter__(self) -> EngineLink:
        for socket in (self._push, self._pull):
            socket.linger = 0
            socket.set_hwm(_HIGH_WATER_MESSAGES)
        self._pull.setsockopt(zmq.MAXMSGSIZE, _LARGEST_MESSAGE_BYTES)
        self._push.bind(self.endpoints.to_engine)
        self._pull.bind(self.endpoints.from_engine)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._push.close()
        self._pull.close()
        for path in self._paths:
            path.unlink(missing_ok=True)

    def send(self, message: ToEngine) -> None:
        """Queue a message. Raises RequestRefusedError when too many submissions are unsent.

        The others always fit: there is at most one of a kind per submission or life.
        """
        if isinstance(message, Submit) and self._outbox.qsize() >= _HIGH_WATER_MESSAGES:
            raise RequestRefusedError(
                "queue_full",
                f"{self._outbox.qsize()} messages wait for the engine, the limit is "
                f"{_HIGH_WATER_MESSAGES}; try again later",
            )
        self._outbox.put_nowait(message)

    async def run(self, receive: Callable[[FromEngine], None]) -> None:
        """Move messages until cancelled. Raises msgspec.ValidationError for an unknown message."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._write())
            tasks.create_task(self._read(receive))

    async def drain(self, receive: Callable[[FromEngine], None]) -> None:
        """Take what a dead engine had sent, its reason for instance, but only what is valid."""
        try:
            async with asyncio.timeout(_DRAIN_S):
                while await self._pull.poll(_QUIET_MS):
                    receive(self._decoder.decode(await self._pull.recv()))
        except (TimeoutError, msgspec.DecodeError):
            return  # the process is gone; what it meant to say no longer matters

    async def _write(self) -> None:
        while True:
            await self._push.send(self._encoder.encode(await self._outbox.get()))

    async def _read(self, receive: Callable[[FromEngine], None]) -> None:
        while True:
            message = self._decoder.decode(await self._pull.recv())
            if isinstance(message, Outputs):
                message = await first_tokens(message, receive)
            receive(message)


async def first_tokens(outputs: Outputs, receive: Callable[[FromEngine], None]) -> Outputs:
    """Let them reach their clients before the others' events are taken in; returns those.

    All events of an iteration pass the event loop together: beside 48 streams a first token waited
    8 to 10 ms for the others' (`bench/delivery.py`).
    """
    count = sum(event.first for event in outputs.events)  # they come before the others
    if count in (0, len(outputs.events)):
        return outputs
    receive(Outputs(outputs.events[:count]))
    # Cancelled meanwhile: the engine is dead. What is not taken in here counts as never emitted.
    for _ in range(PASSES_TO_A_CLIENT):
        await asyncio.sleep(0)
    return Outputs(outputs.events[count:])
