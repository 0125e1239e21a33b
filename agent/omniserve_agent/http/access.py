"""Who may use which service: the `model` value selects it, its bearer keys open it."""

from __future__ import annotations

import hmac

from aiohttp import web

from omniserve_agent.http.errors import ApiError, unavailable
from omniserve_agent.http.registry import ServiceRegistry
from omniserve_agent.serving import ServedService

PAUSED_RETRY_S = 60.0
PAUSED_CODE = "service_paused"


def is_permitted(request: web.Request, service: ServedService) -> bool:
    """Whether the request carries one of the service's keys, compared in constant time."""
    if service.is_open:
        return True
    given = _bearer(request).encode(errors="surrogateescape")
    matches = [hmac.compare_digest(given, key.encode()) for key in service.api_keys]
    return any(matches)


def admitted(request: web.Request, registry: ServiceRegistry, model: str) -> ServedService:
    """The running service behind `model`; ApiError 404, 401 or 503 otherwise."""
    service = registry.served_as(model)
    if service is None:
        names = ", ".join(sorted(s.served_name for s in registry.services if s.is_open))
        raise ApiError(
            404,
            f"the model {model!r} does not exist; "
            + (f"use one of: {names}" if names else "GET /v1/models lists yours"),
            param="model",
            code="model_not_found",
        )
    if not is_permitted(request, service):
        raise unauthorized(request)
    if service.paused:
        raise unavailable(
            f"the service {service.key} is paused; set spec.state to Running to use it",
            PAUSED_RETRY_S,
            PAUSED_CODE,
        )
    return service


def unauthorized(request: web.Request) -> ApiError:
    """401, telling a missing key from a wrong one."""
    fault = "is not valid here" if _bearer(request) else "is missing"
    return ApiError(
        401,
        f"the API key {fault}; send a valid one as 'Authorization: Bearer KEY'",
        kind="authentication_error",
        code="invalid_api_key",
    )


def _bearer(request: web.Request) -> str:
    scheme, _, key = request.headers.get("Authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""
