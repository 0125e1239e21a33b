"""What manifests ask for that a standalone agent cannot do, or not yet. Pure.

What would change results is refused; what only has no effect here is said in one warning.
"""

from __future__ import annotations

from collections.abc import Iterable

from omniserve_agent.engine.faults import FaultSettingError, iteration_delay
from omniserve_agent.node.errors import NodeError
from omniserve_crds.llmservice import LLMService

FLOOR_POLICY = "omniserve"  # the one that keeps minSharePercent


def review(services: Iterable[LLMService], policy: str) -> list[str]:
    """One warning per service with fields that have no effect here; NodeError for the rest."""
    warnings = []
    for service in services:
        refusal = _refusal(service)
        if refusal:
            raise NodeError(f"LLMService {service.key}: {refusal}")
        idle = _without_effect(service, policy)
        if idle:
            warnings.append(
                f"LLMService {service.key}: standalone, these have no effect: {'; '.join(idle)}"
            )
    return warnings


def _refusal(service: LLMService) -> str | None:
    model = service.spec.model
    if model.credentials_secret_ref is not None:
        return (
            f"spec.model.credentialsSecretRef: {model.credentials_secret_ref.name!r} cannot be "
            "read outside a cluster; remove it and put the model into the local cache"
        )
    if model.revision is not None:
        return (
            f"spec.model.revision: {model.revision!r} is not supported by this version yet; "
            "remove it and put the wanted revision into the local cache"
        )
    return None


def _without_effect(service: LLMService, policy: str) -> list[str]:
    spec = service.spec
    idle = []
    if spec.replicas > 1:
        idle.append(f"spec.replicas {spec.replicas} (one agent runs one replica)")
    if spec.placement.node_selector:
        idle.append("spec.placement.nodeSelector (there is one node)")
    if spec.placement.tolerations:
        idle.append("spec.placement.tolerations (there is one node)")
    if spec.resources.min_share_percent is not None and policy != FLOOR_POLICY:
        share = spec.resources.min_share_percent
        idle.append(
            f"spec.resources.minSharePercent {share} (policy {policy} keeps no floor; "
            f"use --policy {FLOOR_POLICY})"
        )
    return idle


def review_environment() -> None:
    """NodeError where a fault for tests is asked for outside tests."""
    try:
        iteration_delay()
    except FaultSettingError as error:
        raise NodeError(str(error)) from error
