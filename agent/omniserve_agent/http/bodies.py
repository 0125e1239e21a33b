"""Receiving request bodies, so that uploads which stand still hold up nobody else."""

from __future__ import annotations

import asyncio

from aiohttp import web

from omniserve_agent.http.errors import ApiError

BODY_TIMEOUT_S = 30.0
BODIES_AT_ONCE = 512


class Bodies:
    """The bodies being received, oldest first. One too many ends the oldest: those who send at
    once get through however many others send nothing."""

    def __init__(self) -> None:
        self._reads: dict[asyncio.Timeout, None] = {}

    def __len__(self) -> int:
        return len(self._reads)

    async def read(self, request: web.Request) -> bytes:
        """The whole body; ApiError 408 if it does not come in time."""
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S) as limit:
                self._make_room()
                self._reads[limit] = None
                try:
                    return await request.read()
                finally:
                    self._reads.pop(limit, None)
        except TimeoutError as error:
            raise ApiError(
                408,
                "the body did not arrive in time; send it right after the headers",
                code="request_timeout",
            ) from error

    def _make_room(self) -> None:
        if len(self._reads) >= BODIES_AT_ONCE:
            oldest = next(iter(self._reads))
            del self._reads[oldest]
            oldest.reschedule(asyncio.get_running_loop().time())
