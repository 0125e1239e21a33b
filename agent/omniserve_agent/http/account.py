"""What the log says of each request: one line when it has ended; never prompts, texts or keys."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass

import structlog
from aiohttp import web

from omniserve_agent.http.errors import ApiError
from omniserve_agent.serving import ServedService

REQUEST_ID = "X-Request-Id"
QUIET_PATHS = ("/health", "/healthz", "/readyz", "/metrics", "/statusz")  # asked all the time

_SANE_ID = re.compile(r"[\w.:/+=-]{1,128}", re.ASCII)
_MOST_PATH_CHARS = 256


@dataclass
class Account:
    """Figures of one HTTP request, filled in on its way. None: it did not come so far."""

    request_id: str
    model: str | None = None
    service: ServedService | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    ttft_ms: float | None = None
    error: str | None = None

    def failed(self, error: ApiError) -> None:
        """It was refused, or ended before it was complete."""
        self.error = error.code or error.kind

    def log(self, request: web.Request, status: int, total_ms: float) -> None:
        """The line."""
        service = self.service
        fields = {
            "method": request.method,
            "path": request.path[:_MOST_PATH_CHARS],
            "status": status,
            "model": self.model,
            "service": service.key if service else None,
            "class": service.service_class.value if service else None,
            "prompt_tokens": self.prompt_tokens,
            "output_tokens": self.output_tokens,
            "ttft_ms": None if self.ttft_ms is None else round(self.ttft_ms, 1),
            "total_ms": round(total_ms, 1),
            "request_id": self.request_id,
            "error": self.error,
        }
        known = {name: value for name, value in fields.items() if value is not None}
        structlog.get_logger("omniserve.http").info("request", **known)


_ACCOUNT = web.RequestKey("account", Account)


def opened(request: web.Request) -> Account:
    """The account of a request that has just come."""
    account = Account(request_id(request.headers))
    request[_ACCOUNT] = account
    return account


def account_of(request: web.Request) -> Account:
    """The account of a request that is being handled."""
    return request[_ACCOUNT]


def request_id(headers: Mapping[str, str]) -> str:
    """The caller's own id where it can stand in a header and a log, else a new one."""
    given = headers.get(REQUEST_ID, "")
    return given if _SANE_ID.fullmatch(given) else uuid.uuid4().hex


def is_quiet(path: str) -> bool:
    """Whether requests of `path` are left out of the log."""
    return path in QUIET_PATHS or path.startswith(("/readyz/", "/statusz/"))


async def named(request: web.Request, response: web.StreamResponse) -> None:
    """Puts the request's id into the headers, before they are sent."""
    account = request.get(_ACCOUNT)
    if account is not None:  # else aiohttp has answered before any handler
        response.headers[REQUEST_ID] = account.request_id
