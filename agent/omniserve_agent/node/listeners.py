"""The HTTP ports: reserved before anything else starts, drained before anything else stops."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

from aiohttp import web

from omniserve_agent.http.app import HEALTH_ROUTES, app_over
from omniserve_agent.http.server import Server, start
from omniserve_agent.http.state import STATE
from omniserve_agent.node.errors import NodeError


@dataclass(frozen=True)
class Ports:
    """Ports found free, to be listened on later; `admin` None: there is no such port."""

    host: str
    api: int
    admin: int | None

    @property
    def url(self) -> str:
        """Where a client on this machine finds the API."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://[{host}]:{self.api}" if ":" in host else f"http://{host}:{self.api}"


@contextlib.contextmanager
def reserved(
    host: str, api: int, admin: int | None
) -> Iterator[tuple[Ports, contextlib.ExitStack]]:
    """Hold the ports, 0 replaced by a free one, until the stack is closed.

    Raises NodeError that names the flag where a port cannot be had.
    """
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(_bind("--port", host, api))]
        if admin is not None:
            sockets.append(stack.enter_context(_bind("--admin-port", host, admin)))
        numbers = [held.getsockname()[1] for held in sockets]
        yield Ports(host, numbers[0], numbers[1] if admin is not None else None), stack


@contextlib.asynccontextmanager
async def listening(
    app: web.Application, ports: Ports, grace_s: float, at_once: asyncio.Event
) -> AsyncIterator[None]:
    """Serve `app`, and health and metrics on the admin port; at the end drain for `grace_s`, or
    until `at_once`."""
    api = await _start("--port", app, ports.host, ports.api)
    admin = None
    try:
        if ports.admin is not None:
            admin = await _start("--admin-port", admin_app(app), ports.host, ports.admin)
        yield
    finally:
        await api.stop(grace_s, at_once)
        if admin is not None:
            await admin.stop(0.0)


def admin_app(app: web.Application) -> web.Application:
    """Health, status and metrics of `app` without its API."""
    return app_over(app[STATE], HEALTH_ROUTES)


async def _start(flag: str, app: web.Application, host: str, port: int) -> Server:
    try:
        return await start(app, host, port)
    except OSError as error:
        raise _port_error(flag, host, port, error) from error


def _bind(flag: str, host: str, port: int) -> socket.socket:
    """A socket that holds the port without listening."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        held = socket.socket(family, kind, protocol)
    except OSError as error:
        raise NodeError(
            f"--host {host}: {error.strerror}; use an address of this machine"
        ) from error
    try:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(address)
    except OSError as error:
        held.close()
        raise _port_error(flag, host, port, error) from error
    return held


def _port_error(flag: str, host: str, port: int, error: OSError) -> NodeError:
    return NodeError(f"{flag} {port}: {error.strerror} on {host}; choose another port or --host")
