"""Server-sent events: one JSON object per event, comments while waiting, `[DONE]` at the end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

import msgspec
from aiohttp import web

from omniserve_agent.http.errors import ApiError
from omniserve_agent.http.records import ClientGoneError

AT_ONCE_BYTES = 16 << 10  # far below what a transport takes before it makes writers wait


class EventStream:
    """Headers go out with the first write, so that what fails before it has a status of its own."""

    def __init__(self, request: web.Request, write_timeout_s: float) -> None:
        self._request = request
        self._write_timeout_s = write_timeout_s
        self.response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
        )

    @property
    def started(self) -> bool:
        """Whether the headers have gone out."""
        return self.response.prepared

    async def send(self, *bodies: object) -> None:
        """Each body as an event, in one write."""
        await self._write(b"".join(b"data: %b\n\n" % msgspec.json.encode(body) for body in bodies))

    async def comment(self) -> None:
        """Bytes that clients ignore and proxies count as life."""
        await self._write(b": keep-alive\n\n")

    async def done(self) -> None:
        """The end of a complete stream."""
        await self._write(b"data: [DONE]\n\n")
        await self._end()

    async def fail(self, error: ApiError) -> None:
        """The end of a broken stream: an error event, no `[DONE]`, connection closed."""
        self.response.force_close()
        try:
            await self.send(error.body)
            await self._end()
        except ClientGoneError:
            return

    @property
    def _is_read(self) -> bool:
        """Whether all that was written has gone: a little more goes without waiting."""
        transport = self._request.transport
        return self.started and transport is not None and not transport.get_write_buffer_size()

    async def _write(self, data: bytes) -> None:
        if self._is_read and len(data) <= AT_ONCE_BYTES:
            await self._in_time(self.response.write(data), None)
        else:
            await self._in_time(self._prepared_write(data), self._write_timeout_s)

    async def _prepared_write(self, data: bytes) -> None:
        if not self.started:
            await self.response.prepare(self._request)
        await self.response.write(data)

    async def _end(self) -> None:
        await self._in_time(self.response.write_eof(), self._write_timeout_s)

    async def _in_time(self, writing: Awaitable[None], limit_s: float | None) -> None:
        """`writing`; after `limit_s` the connection ends at once, with what it still holds."""
        try:
            if limit_s is None:  # nearly every event: no timer for what does not wait
                await writing
                return
            async with asyncio.timeout(limit_s):
                await writing
        except TimeoutError as error:
            self.response.force_close()
            if self._request.transport is not None:
                self._request.transport.abort()
            raise ClientGoneError("the client reads nothing") from error
        except ConnectionError as error:
            raise ClientGoneError("the client closed the connection") from error
