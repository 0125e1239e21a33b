"""GET /v1/models and /v1/models/{model}: the services that the caller may use."""

from __future__ import annotations

import time
from typing import Any

from aiohttp import web

from omniserve_agent.http.access import admitted, is_permitted, unauthorized
from omniserve_agent.http.errors import json_response
from omniserve_agent.http.state import STATE
from omniserve_agent.serving import ServedService


async def models(request: web.Request) -> web.Response:
    """Open services, and those whose key the request carries."""
    services = request.app[STATE].registry.services
    visible = [service for service in services if is_permitted(request, service)]
    if services and not visible:
        raise unauthorized(request)
    return json_response({"object": "list", "data": [_described(s) for s in visible]})


async def model(request: web.Request) -> web.Response:
    """One service by its served name."""
    registry = request.app[STATE].registry
    return json_response(_described(admitted(request, registry, request.match_info["model"])))


def _described(service: ServedService) -> dict[str, Any]:
    limits = service.backend.ready.max_request_tokens if service.backend.ready else {}
    known = [n for n in (service.max_model_len, limits.get(service.service_class)) if n]
    return {
        "id": service.served_name,
        "object": "model",
        "created": int(time.time()),
        "owned_by": service.namespace,
        "max_model_len": min(known, default=None),
    }
