"""LLMServices as HTTP routes to them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omniserve_agent.engine.messages import ServiceClass
from omniserve_agent.node.assignments import is_paused
from omniserve_agent.node.engine_client import EngineClient
from omniserve_agent.node.plan import PreparedEngine
from omniserve_agent.serving import ServedService, Slo
from omniserve_crds.llmservice import LLMService
from omniserve_crds.llmservice import Slo as SpecifiedSlo


def served_services(
    engines: Sequence[PreparedEngine],
    clients: dict[str, EngineClient],
    keys: dict[str, frozenset[str]],
) -> list[ServedService]:
    """Every service as HTTP routes to it."""
    return [
        _served_service(service, clients[engine.assignment.name], engine.model_dir, keys)
        for engine in engines
        for service in engine.assignment.services
    ]


def _served_service(
    service: LLMService, client: EngineClient, model_dir: Path, keys: dict[str, frozenset[str]]
) -> ServedService:
    return ServedService(
        namespace=service.metadata.namespace,
        name=service.metadata.name,
        served_name=service.served_name,
        service_class=ServiceClass(service.spec.service_class),
        backend=client,
        tokenizer_dir=str(model_dir),
        max_model_len=service.spec.model.max_model_len,
        slo=routed_slo(service.spec.slo),
        priority=service.spec.priority,
        min_share_percent=service.spec.resources.min_share_percent or 0,
        paused=is_paused(service),
        api_keys=keys[service.key],
    )


def routed_slo(slo: SpecifiedSlo | None) -> Slo | None:
    """A manifest's or an assignment's SLO as HTTP judges by it."""
    if slo is None:
        return None
    return Slo(
        ttft_ms=slo.ttft_ms,
        tpot_ms=slo.tpot_ms,
        objective_percent=slo.objective_percent,
        window_s=slo.window_s,
        min_samples=slo.min_samples,
    )
