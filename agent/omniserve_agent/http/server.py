"""Listening, and an end that lets running requests finish."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass

from aiohttp import web

from omniserve_agent.http.errors import unavailable
from omniserve_agent.http.state import STATE, State

DRAIN_POLL_S = 0.05
FAREWELL_S = 2.0


@dataclass
class Server:
    """A listening server. Stopping it again changes nothing."""

    state: State
    port: int
    _runner: web.AppRunner
    _site: web.TCPSite
    _stopped: bool = False
    _accepting: bool = True

    async def shut(self) -> None:
        """Give the port back; requests in flight go on."""
        self.state.draining = True
        if self._accepting:
            self._accepting = False
            await self._site.stop()

    async def stop(self, grace_s: float, at_once: asyncio.Event | None = None) -> None:
        """Accept no more, let requests in flight finish for up to `grace_s` or until `at_once`,
        then end them with an error their clients can read."""
        if self._stopped:
            return
        self._stopped = True
        await self.shut()
        await self.drain(grace_s, at_once)
        await self._runner.cleanup()

    async def drain(self, grace_s: float, at_once: asyncio.Event | None = None) -> None:
        """Take no more requests and end those in flight as `stop` does, but go on listening, so
        that latecomers read why. `state.draining` False takes requests again."""
        self.state.draining = True
        await self._until_idle(grace_s, at_once or asyncio.Event())
        for merge in list(self.state.merges):
            merge.fail(unavailable("this server is shutting down; try again", 1.0, "shutting_down"))
        await self._until_idle(FAREWELL_S, asyncio.Event())

    async def _until_idle(self, limit_s: float, at_once: asyncio.Event) -> None:
        try:
            async with asyncio.timeout(limit_s):
                while self.state.in_flight and not at_once.is_set():
                    await asyncio.sleep(DRAIN_POLL_S)
        except TimeoutError:
            return


async def start(
    app: web.Application, host: str, port: int, tls: ssl.SSLContext | None = None
) -> Server:
    """Listen on `host`:`port` (0: any free one, see `Server.port`); OSError if that fails.

    With `tls` it speaks HTTPS.
    """
    state = app[STATE]
    runner = web.AppRunner(
        app,
        handler_cancellation=True,  # a client that hangs up cancels its requests at once
        keepalive_timeout=state.settings.idle_connection_s,
        shutdown_timeout=FAREWELL_S,
        access_log=None,
    )
    await runner.setup()
    site = web.TCPSite(runner, host, port, ssl_context=tls)
    try:
        await site.start()
    except BaseException:
        await runner.cleanup()
        raise
    return Server(state, runner.addresses[0][1], runner, site)
