"""GET /healthz, /readyz and /readyz/{namespace}/{name}."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import aclosing

from aiohttp import web

from omniserve_agent.engine.messages import SamplingParams, Submit
from omniserve_agent.http.errors import ApiError, json_response
from omniserve_agent.http.loading import loaded_tokenizer
from omniserve_agent.http.state import STATE, State
from omniserve_agent.serving import (
    FOR_CAPACITY,
    EngineUnavailableError,
    RequestRefusedError,
    ServedService,
)

PROBE_TEXT = "Hello"


async def healthz(request: web.Request) -> web.Response:
    """200 while the event loop turns."""
    return json_response({"status": "ok"})


async def readyz(request: web.Request) -> web.Response:
    """200 when every running service has an engine that takes requests; the body says why not."""
    state = request.app[STATE]
    reasons = {
        service.key: service.backend.progress or "the engine is not ready"
        for service in state.registry.services
        if not service.paused and service.backend.ready is None
    }
    if state.draining:
        reasons["agent"] = "draining: no new requests are taken"
    if reasons:
        return json_response({"status": "not ready", "reasons": reasons}, status=503)
    return json_response({"status": "ready"} | _emulated(state))


def _emulated(state: State) -> dict[str, list[str]]:
    """Which engines are not what they seem; empty where all devices are real."""
    ready = [(name, backend.ready) for name, backend in state.registry.engines]
    labels = [f"{name}: {r.emulated}" for name, r in ready if r is not None and r.emulated]
    return {"emulated": labels} if labels else {}


async def readyz_service(request: web.Request) -> web.Response:
    """200 when the service has just completed one token; it gates the service's endpoint."""
    state = request.app[STATE]
    key = f"{request.match_info['namespace']}/{request.match_info['name']}"
    service = state.registry.with_key(key)
    if service is None:
        known = ", ".join(s.key for s in state.registry.services) or "none"
        raise ApiError(404, f"no service {key!r} here; known: {known}", code="service_not_found")
    reason = await why_not_ready(state, service)
    if reason is not None:
        return json_response({"status": "not ready", "reasons": {key: reason}}, status=503)
    return json_response({"status": "ready"})


async def why_not_ready(state: State, service: ServedService) -> str | None:
    """None once the service has completed one token. Probes that overlap share one completion, so
    that they cost the engine no more than one."""
    task = state.probes.get(service.key)
    if task is None or task.done():
        task = asyncio.create_task(_probe(state, service))
        state.probes[service.key] = task
    return await asyncio.shield(task)


async def _probe(state: State, service: ServedService) -> str | None:
    """Why the service is not ready, or None."""
    if service.paused:
        return "paused"
    if state.draining:
        return "draining: no new requests are taken"
    if service.backend.ready is None:
        return service.backend.progress or "the engine is not ready"
    timeout_s = state.settings.probe_timeout_s
    try:
        async with asyncio.timeout(timeout_s):
            await _complete_one(state, service)
    except TimeoutError:
        return f"no token within {timeout_s:g} s"
    except RequestRefusedError as error:
        # A full queue is an answer: taking the endpoint away would only move the load.
        return None if error.reason in FOR_CAPACITY else error.message
    except (EngineUnavailableError, ApiError) as error:
        return str(error)
    return None


async def _complete_one(state: State, service: ServedService) -> None:
    tokenizer = await loaded_tokenizer(state, service)
    submit = Submit(
        request_id=uuid.uuid4().hex,
        service=service.key,
        service_class=service.service_class,
        prompt=tokenizer.encode(PROBE_TEXT),
        max_tokens=1,
        sampling=SamplingParams(temperature=0.0),
        priority=service.priority,
        cache_salt=service.namespace,
    )
    async with aclosing(service.backend.stream(submit)) as events:
        async for event in events:
            if event.finish_reason is not None:
                return
    raise EngineUnavailableError("the engine ended the probe without a result")
