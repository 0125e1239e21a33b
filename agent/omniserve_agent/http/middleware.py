"""What surrounds every request: its line in the log, errors in one shape, connections that end in
time."""

from __future__ import annotations

from asyncio import BaseTransport, CancelledError
from collections.abc import Awaitable, Callable
from weakref import WeakKeyDictionary

from aiohttp import web

from omniserve_agent.http.account import account_of, is_quiet, opened
from omniserve_agent.http.errors import ApiError, client_gone, translated
from omniserve_agent.http.log import log_unexpected
from omniserve_agent.http.state import STATE

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def accounts(request: web.Request, handler: Handler) -> web.StreamResponse:
    """An account per request, and its line in the log."""
    account, clock = opened(request), request.app[STATE].clock
    if is_quiet(request.path):
        return await handler(request)
    came_s, status = clock(), client_gone().status
    try:
        response = await handler(request)
        status = response.status
        return response
    except CancelledError:
        account.failed(client_gone())
        raise
    finally:
        account.log(request, status, (clock() - came_s) * 1e3)


@web.middleware
async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every failure as an OpenAI error object."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        failure = _from_aiohttp(request, error)
    except Exception as error:
        log_unexpected(error)
        failure = translated(error)
    account_of(request).failed(failure)
    return failure.response()


class ConnectionAge:
    """Closes a connection after so many requests, so that clients spread over new replicas."""

    def __init__(self, requests_per_connection: int) -> None:
        self._most = requests_per_connection
        self._served: WeakKeyDictionary[BaseTransport, int] = WeakKeyDictionary()

    async def __call__(self, request: web.Request, response: web.StreamResponse) -> None:
        """Runs before headers are sent."""
        transport = request.transport
        if transport is None:
            return
        served = self._served.get(transport, 0) + 1
        self._served[transport] = served
        if served >= self._most or request.app[STATE].draining:
            response.force_close()
            response.headers["Connection"] = "close"


def _from_aiohttp(request: web.Request, error: web.HTTPException) -> ApiError:
    match error:
        case web.HTTPRequestEntityTooLarge():
            most = request.app[STATE].settings.max_body_bytes
            text = f"the body is longer than {most} bytes; send less"
            return ApiError(413, text, code="request_too_large")
        case web.HTTPMethodNotAllowed():
            allowed = ", ".join(sorted(error.allowed_methods))
            text = f"{request.path} does not take {request.method}; use {allowed}"
            return ApiError(405, text, code="method_not_allowed", allowed=allowed)
        case web.HTTPNotFound():
            return ApiError(
                404, f"no such path: {request.path}; see GET /v1/models", code="no_path"
            )
    return ApiError(error.status, error.reason)
