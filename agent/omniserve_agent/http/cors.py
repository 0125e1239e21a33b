"""Cross-origin requests to `/v1` for the origins that the operator of this server names; else none.

Keys travel in `Authorization`, never in cookies, so that no answer allows credentials.
"""

from __future__ import annotations

from aiohttp import hdrs, web

from omniserve_agent.http.account import REQUEST_ID
from omniserve_agent.http.middleware import Handler
from omniserve_agent.http.state import STATE

ANY_ORIGIN = "*"
_METHODS = "GET, POST"
_READABLE_HEADERS = f"{REQUEST_ID}, {hdrs.RETRY_AFTER}"
_PREFLIGHT_AGE_S = 600


@web.middleware
async def preflights(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answers browsers that ask first; `shared` adds the origin."""
    asks = request.method == hdrs.METH_OPTIONS
    asks = asks and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers
    if not asks or _allowed_origin(request) is None:
        return await handler(request)
    wanted = request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_HEADERS, "")
    headers = {
        hdrs.ACCESS_CONTROL_ALLOW_METHODS: _METHODS,
        hdrs.ACCESS_CONTROL_ALLOW_HEADERS: wanted,
        hdrs.ACCESS_CONTROL_MAX_AGE: str(_PREFLIGHT_AGE_S),
    }
    return web.Response(status=204, headers=headers)


async def shared(request: web.Request, response: web.StreamResponse) -> None:
    """Lets pages of an allowed origin read the answer, errors too."""
    if not request.app[STATE].settings.cors_origins:
        return
    response.headers.add(hdrs.VARY, hdrs.ORIGIN)
    origin = _allowed_origin(request)
    if origin is not None:
        response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
        response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = _READABLE_HEADERS


def _allowed_origin(request: web.Request) -> str | None:
    """What to allow: the request's own origin or any; None: nothing."""
    origins = request.app[STATE].settings.cors_origins
    origin = request.headers.get(hdrs.ORIGIN)
    if origin is None or not request.path.startswith("/v1/"):
        return None
    if ANY_ORIGIN in origins:
        return ANY_ORIGIN
    return origin if origin in origins else None
