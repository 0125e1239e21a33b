"""GET /statusz: figures per service and engine as JSON, for people, the demo and reports."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import msgspec
from aiohttp import web

from omniserve_agent.engine.messages import Ready, ServiceClass, Stats
from omniserve_agent.http.errors import json_response
from omniserve_agent.http.state import STATE, State
from omniserve_agent.http.tally import Quantiles
from omniserve_agent.serving import Backend, ServedService

BE_WINDOW_S = 300


async def statusz(request: web.Request) -> web.Response:
    """The handler."""
    state = request.app[STATE]
    return json_response(
        {
            "services": [service_report(state, s) for s in state.registry.services],
            "engines": [
                _engine_report(state, name, backend) for name, backend in state.registry.engines
            ],
            # How long first tokens are on their way to clients; engines are done so much earlier.
            "deliveryMs": _rounded(1e3 * state.books.deliveries.allowance_s),
        }
    )


def service_report(state: State, service: ServedService) -> dict[str, Any]:
    """One entry of ServingNode.status.services[]: `total` since start, `window` over the SLO's
    window (BE: five minutes). Times in milliseconds, null without requests."""
    tally, now_s = state.books.tally(service), state.clock()
    window_s = service.slo.window_s if service.slo else BE_WINDOW_S
    counts, quantiles = tally.window(now_s, window_s)
    report = {
        "namespace": service.namespace,
        "name": service.name,
        "model": service.served_name,
        "class": service.service_class.value,
        "state": _state(service),
        "message": "" if service.backend.ready else service.backend.progress,
        "engine": state.registry.engine_name(service.backend),
        "waiting": tally.waiting,
        "running": tally.running,
        "outputTokens": tally.output_tokens,
        "tokensPerMinute": round(tally.tokens_per_minute(now_s), 1),
        "total": asdict(tally.total),
        "window": {"seconds": window_s, **asdict(counts), **_times(quantiles)},
    }
    if service.service_class is ServiceClass.LS and service.slo is not None:
        report["slo"] = {
            "ttftMs": service.slo.ttft_ms,
            "tpotMs": service.slo.tpot_ms,
            "objectivePercent": service.slo.objective_percent,
            # Of what clients saw; the engine's own leaves out what it refused and what failed.
            "errorBudgetBurn": round(tally.error_budget_burn(service.slo, now_s), 3),
        }
    return report


def _times(quantiles: Quantiles) -> dict[str, float | None]:
    return {
        "ttftMsP50": _rounded(quantiles.ttft_ms_p50),
        "ttftMsP99": _rounded(quantiles.ttft_ms_p99),
        "tpotMsP50": _rounded(quantiles.tpot_ms_p50),
        "tpotMsP99": _rounded(quantiles.tpot_ms_p99),
    }


def _rounded(value_ms: float | None) -> float | None:
    return None if value_ms is None else round(value_ms, 3)


def _state(service: ServedService) -> str:
    if service.paused:
        return "Paused"
    return "Serving" if service.backend.ready else "Loading"


def _engine_report(state: State, name: str, backend: Backend) -> dict[str, Any]:
    services = [s.key for s in state.registry.services if s.backend is backend]
    return {
        "name": name,
        "services": services,
        "ready": backend.ready is not None,
        "emulated": backend.ready.emulated if backend.ready else None,
        "limits": _untagged(backend.ready),
        "progress": backend.progress,
        "restarts": backend.restarts,
        "stats": _untagged(backend.stats),
    }


def _untagged(message: Ready | Stats | None) -> dict[str, Any] | None:
    """The message's fields; its wire tag means nothing here."""
    if message is None:
        return None
    return {name: v for name, v in msgspec.to_builtins(message).items() if name != "type"}
