"""The HTTP listeners: bound before anything else starts, drained before anything else stops."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence

from aiohttp import web

from omniserve_agent.node.errors import NodeError


def bind(flag: str, host: str, port: int) -> socket.socket:
    """A bound socket that does not listen yet; NodeError names the flag where it cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise NodeError(
            f"--host {host}: {error.strerror}; use an address of this machine"
        ) from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise NodeError(
            f"{flag} {port}: {error.strerror} on {host}; choose another port or --host"
        ) from error
    return listener


class Server:
    """One application on several listeners."""

    def __init__(self, application: web.Application, listeners: Sequence[socket.socket]) -> None:
        # Handlers end when their client leaves, so that its requests are cancelled.
        self._runner = web.AppRunner(application, handler_cancellation=True, access_log=None)
        self._listeners = listeners

    async def start(self) -> None:
        """Listen."""
        await self._runner.setup()
        for listener in self._listeners:
            try:
                await web.SockSite(self._runner, listener).start()
            except OSError as error:
                raise NodeError(
                    f"--port {listener.getsockname()[1]}: {error.strerror}; choose another port"
                ) from error

    async def drain(self, grace_s: float) -> bool:
        """Stop accepting and wait up to `grace_s` for open responses; whether all ended."""
        for site in list(self._runner.sites):
            await site.stop()
        server = self._runner.server
        if server is None:
            return True
        server.pre_shutdown()  # closes idle connections, lets busy ones end their response
        deadline = asyncio.get_running_loop().time() + grace_s
        while server.connections and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.05)
        return not server.connections

    async def close(self) -> None:
        """End what is still open."""
        await self._runner.cleanup()
