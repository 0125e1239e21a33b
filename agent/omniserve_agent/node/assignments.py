"""Which services share an engine. Pure.

Services of one engine key are served by one engine, LS and BE combined; the class is not part of
the key, so that it may change while the engine runs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from omniserve_crds.llmservice import LLMService, ServiceState
from omniserve_crds.placement import Colocation


@dataclass(frozen=True)
class EngineKey:
    """What two services must have in common to share an engine."""

    uri: str
    revision: str | None
    dtype: str
    kv_cache_dtype: str
    max_model_len: int | None
    credentials: tuple[str, str] | None  # namespace and name of the Secret
    exclusive: str | None  # the one service that wants the engine for itself


@dataclass(frozen=True)
class Assignment:
    """One engine to be: its key and its services in the order of the manifests."""

    name: str
    key: EngineKey
    services: tuple[LLMService, ...]

    @property
    def wanted(self) -> bool:
        """Whether any service wants it to run."""
        return not all(is_paused(service) for service in self.services)


def assign(services: Iterable[LLMService]) -> tuple[Assignment, ...]:
    """Engines for `services`, in the order in which their keys first appear."""
    groups: dict[EngineKey, list[LLMService]] = {}
    for service in services:
        groups.setdefault(engine_key(service), []).append(service)
    return tuple(
        Assignment(f"engine{index}", key, tuple(group))
        for index, (key, group) in enumerate(groups.items())
    )


def engine_key(service: LLMService) -> EngineKey:
    """The key of the engine that may serve `service`."""
    model, placement = service.spec.model, service.spec.placement
    secret = model.credentials_secret_ref
    return EngineKey(
        uri=str(model.source),
        revision=model.revision,
        dtype=str(model.dtype),
        kv_cache_dtype=str(model.kv_cache_dtype),
        max_model_len=model.max_model_len,
        credentials=(service.metadata.namespace, secret.name) if secret else None,
        exclusive=service.key if placement.colocation is Colocation.EXCLUSIVE else None,
    )


def is_paused(service: LLMService) -> bool:
    """Whether the owner wants no replica now."""
    return service.spec.state is ServiceState.PAUSED or service.spec.replicas == 0


def cache_salt(namespace: str) -> str:
    """The salt of prefix hashes: prefixes are shared inside a namespace only."""
    return namespace
