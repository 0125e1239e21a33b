"""The admin port: health, readiness, metrics and figures of the whole node; no API."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import web

from omniserve_agent.http.app import app_over, metrics_text
from omniserve_agent.http.errors import ApiError, json_response
from omniserve_agent.http.health import healthz, why_not_ready
from omniserve_agent.http.statusz import statusz
from omniserve_agent.http.waits import request_waits
from omniserve_agent.node.cluster.executor import Executor
from omniserve_agent.node.cluster.run_state import RunState
from omniserve_crds.servingnode import ServiceAssignment


@dataclass(frozen=True)
class AdminView:
    """What the port shows. `not_ready` says why the node is not ready, or None."""

    executor: Executor
    not_ready: Callable[[], str | None]


VIEW = web.AppKey("view", AdminView)


def admin_app(view: AdminView) -> web.Application:
    """The port's application."""
    app = app_over(
        view.executor.http,
        [
            web.get("/healthz", healthz),
            web.get("/health", healthz),
            web.get("/readyz", readyz),
            web.get("/readyz/{namespace}/{name}", readyz_service),
            web.get("/metrics", metrics_text),
            web.get("/statusz", statusz),
            web.get("/statusz/requests/{request_id:.+}", request_waits),
        ],
    )
    app[VIEW] = view
    return app


async def readyz(request: web.Request) -> web.Response:
    """200 once the node's object is known, its devices and cores checked, and until it drains."""
    reason = request.app[VIEW].not_ready()
    if reason is not None:
        return json_response({"status": "not ready", "reasons": {"agent": reason}}, status=503)
    return json_response({"status": "ready"})


async def readyz_service(request: web.Request) -> web.Response:
    """200 when the service has just completed one token through its own port's rules."""
    executor = request.app[VIEW].executor
    key = f"{request.match_info['namespace']}/{request.match_info['name']}"
    service, state = _assigned(executor, key)
    reason: str | None = f"{state.state}: {state.reason} {state.message}".rstrip()
    door = executor.door_of(service.uid)
    if door is not None and door.service is not None and not door.facts.draining:
        keys_missing = executor.keys.problem(service.api_keys_secret)
        reason = door.facts.error or keys_missing or await why_not_ready(door.state, door.service)
    if reason is not None:
        return json_response({"status": "not ready", "reasons": {key: reason}}, status=503)
    return json_response({"status": "ready"})


def _assigned(executor: Executor, key: str) -> tuple[ServiceAssignment, RunState]:
    """The service `namespace/name`; ApiError 404 where it is not on this node."""
    services = executor.services()
    for service, state in services:
        if f"{service.namespace}/{service.name}" == key:
            return service, state
    known = ", ".join(f"{s.namespace}/{s.name}" for s, _ in services) or "none"
    raise ApiError(404, f"no service {key!r} here; known: {known}", code="service_not_found")
