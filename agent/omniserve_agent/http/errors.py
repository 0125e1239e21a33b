"""Errors in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import math
from typing import Any

import msgspec
from aiohttp import web

from omniserve_agent.serving import EngineUnavailableError, RequestRefusedError


class ApiError(Exception):
    """An answer other than 200. `param` names the request field at fault; `allowed`: the methods
    that the path takes, of a 405."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
        allowed: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s
        self.allowed = allowed

    @property
    def body(self) -> dict[str, Any]:
        """The error object."""
        return {
            "error": {
                "message": self.message,
                "type": self.kind,
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self) -> web.Response:
        """The JSON response, with `Retry-After` in whole seconds and `Allow` where they apply."""
        headers = {}
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(max(1, math.ceil(self.retry_after_s)))
        if self.allowed is not None:
            headers["Allow"] = self.allowed
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return json_response(self.body, status=self.status, headers=headers)


def json_response(
    body: object, *, status: int = 200, headers: dict[str, str] | None = None
) -> web.Response:
    """`body` as JSON."""
    return web.Response(
        body=msgspec.json.encode(body),
        status=status,
        headers=headers,
        content_type="application/json",
    )


def invalid(message: str, param: str | None = None, code: str = "invalid_value") -> ApiError:
    """400: the caller's mistake in `param`."""
    return ApiError(400, message, param=param, code=code)


def unavailable(message: str, retry_after_s: float = 5.0, code: str | None = None) -> ApiError:
    """503: our fault or the owner's wish; worth another try."""
    return ApiError(
        503,
        message,
        kind="service_unavailable_error",
        code=code or "engine_unavailable",
        retry_after_s=retry_after_s,
    )


def overloaded(message: str, retry_after_s: float, code: str = "queue_full") -> ApiError:
    """429: refused for capacity."""
    return ApiError(
        429,
        message,
        kind="rate_limit_error",
        code=code,
        retry_after_s=retry_after_s,
    )


def client_gone() -> ApiError:
    """For the log only: nobody reads it any more."""
    return ApiError(499, "the client closed the connection", kind="client_closed_request")


def translated(error: BaseException) -> ApiError:
    """Any failure of a running request as the answer its client gets."""
    match error:
        case ApiError():
            return error
        case RequestRefusedError(reason="queue_full"):
            return overloaded(error.message, error.retry_after_s)
        case RequestRefusedError(reason="slo"):
            return overloaded(error.message, error.retry_after_s, "slo_not_attainable")
        case RequestRefusedError(reason="too_long"):
            return invalid(error.message, "prompt", "context_length_exceeded")
        case RequestRefusedError():
            return invalid(error.message)
        case EngineUnavailableError():
            return unavailable(str(error) or "the engine is not available; try again")
        case TimeoutError():
            return ApiError(504, "the engine sent nothing in time; try again", kind="timeout_error")
    return ApiError(500, "internal error; the agent's log says more", kind="server_error")
