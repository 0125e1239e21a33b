"""The OpenAI server over services: routes, shared state, start and end."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable, Sequence

import structlog
from aiohttp import web

from omniserve_agent.http import account, cors, middleware
from omniserve_agent.http.chat import chat_completions
from omniserve_agent.http.completions import completions
from omniserve_agent.http.health import healthz, readyz, readyz_service
from omniserve_agent.http.metrics import Metrics
from omniserve_agent.http.models import model, models
from omniserve_agent.http.records import Books, Clock
from omniserve_agent.http.registry import ServiceRegistry
from omniserve_agent.http.settings import HttpSettings
from omniserve_agent.http.slo_metrics import SloCollector
from omniserve_agent.http.state import STATE, State
from omniserve_agent.http.statusz import statusz
from omniserve_agent.http.tokenizer import TokenizerError
from omniserve_agent.http.tokenizing import Tokenizing
from omniserve_agent.http.waits import request_waits
from omniserve_agent.serving import ServedService


def make_app(
    services: Sequence[ServedService] | ServiceRegistry,
    *,
    clock: Clock = time.monotonic,
    settings: HttpSettings | None = None,
) -> web.Application:
    """The application. Keep the registry to `replace` services while it runs.

    `clock`: monotonic seconds, for attainment.
    """
    registry = services if isinstance(services, ServiceRegistry) else ServiceRegistry(services)
    app = app_over(
        make_state(registry, clock=clock, settings=settings), [*API_ROUTES, *HEALTH_ROUTES]
    )
    app.cleanup_ctx.append(_tokenizers)
    return app


def make_state(
    registry: ServiceRegistry,
    *,
    clock: Clock = time.monotonic,
    settings: HttpSettings | None = None,
) -> State:
    """What handlers share. Whoever makes it closes its `tokenizing`."""
    settings = settings or HttpSettings()
    metrics = Metrics(registry)
    books = Books(registry, metrics, clock)
    metrics.include(SloCollector(registry, books, clock))
    return State(
        registry=registry,
        settings=settings,
        clock=clock,
        metrics=metrics,
        books=books,
        tokenizing=Tokenizing(settings),
    )


def app_over(state: State, routes: Iterable[web.RouteDef]) -> web.Application:
    """An application whose handlers find `state`."""
    settings = state.settings
    app = web.Application(
        middlewares=[middleware.accounts, cors.preflights, middleware.errors],
        client_max_size=settings.max_body_bytes,
    )
    app[STATE] = state
    app.add_routes(routes)
    app.on_response_prepare.append(account.named)
    app.on_response_prepare.append(cors.shared)
    app.on_response_prepare.append(middleware.ConnectionAge(settings.requests_per_connection))
    return app


async def metrics_text(request: web.Request) -> web.Response:
    """GET /metrics."""
    body = request.app[STATE].metrics.text()
    return web.Response(
        body=body, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
    )


API_ROUTES = (
    web.get("/v1/models", models),
    web.get("/v1/models/{model:.+}", model),
    web.post("/v1/completions", completions),
    web.post("/v1/chat/completions", chat_completions),
)
HEALTH_ROUTES = (
    web.get("/healthz", healthz),
    web.get("/health", healthz),  # its name elsewhere
    web.get("/readyz", readyz),
    web.get("/readyz/{namespace}/{name}", readyz_service),
    web.get("/metrics", metrics_text),
    web.get("/statusz", statusz),
    web.get("/statusz/requests/{request_id:.+}", request_waits),
)


async def _tokenizers(app: web.Application) -> AsyncIterator[None]:
    """Loads tokenizers before the first request, which would else pay for it."""
    state = app[STATE]
    for service in state.registry.services:
        try:
            await state.tokenizing.get(service.tokenizer_dir)
        except TokenizerError as error:
            log = structlog.get_logger("omniserve.http")
            log.warning("tokenizer not loaded", service=service.key, reason=str(error))
    yield
    state.tokenizing.close()
