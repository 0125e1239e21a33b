"""GET /statusz/requests/{id}: why one request waits, computed when asked."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from omniserve_agent.http.account import REQUEST_ID
from omniserve_agent.http.errors import ApiError, json_response
from omniserve_agent.http.open_requests import OpenRequest
from omniserve_agent.http.state import STATE

MOST_REQUESTS, MOST_CHOICES = 4, 8  # explained in one answer; each takes time of an engine's loop
SHOWN_CHARS = 128


async def request_waits(request: web.Request) -> web.Response:
    """The handler; 404 for an id of which nothing runs."""
    request_id = request.match_info["request_id"]
    found = request.app[STATE].open_requests.of(request_id)
    if not found:
        raise ApiError(
            404,
            f"no request {request_id[:SHOWN_CHARS]!r} runs here; give the {REQUEST_ID.lower()} of "
            "one that has been taken and has not ended",
            param="id",
            code="request_not_found",
        )
    reports = [await _report(one) for one in found[:MOST_REQUESTS]]
    return json_response({"id": request_id, "open": len(found), "requests": reports})


async def _report(one: OpenRequest) -> dict[str, Any]:
    """`waits`: empty for a choice that waits for nothing; a choice that has ended is left out."""
    ids = [submit.request_id for submit in one.submits[:MOST_CHOICES]]
    reasons = await one.service.backend.explain(ids)
    choices = [
        {"index": index, "waits": reasons[request_id]}
        for index, request_id in enumerate(ids)
        if request_id in reasons
    ]
    return {
        "service": one.service.key,
        "class": one.service.service_class.value,
        "submitted": len(one.submits),
        "choices": choices,
    }
