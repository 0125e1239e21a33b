"""What the operator is told at start."""

from __future__ import annotations

from dataclasses import dataclass, field

from omniserve_crds.llmservice import ServiceClass

# An agent is stale when the operator has seen no change of its status for this long.
STALE_AFTER_S = 60.0
SECRETS_EVERY_S = 30.0
# Clients and proxies learn of a lost address a moment later: so long before a replica is told that
# it may refuse them.
WITHDRAWN_S = 3.0
# A node that is drained for its agent's upgrade is waited for so long; the rest is the pod's own
# grace period.
DRAIN_LIMIT_S = 30.0
# Figures in a status are refreshed at most this often; states at once.
FIGURES_EVERY_S = 15.0
# All services together get so many of them: a thousand busy ones are refreshed in turn.
FIGURES_PER_S = 4.0
FIGURES_BURST = 20.0

CLASSES_LABEL = "omniserve.io/classes"
MAX_REPLICAS_ANNOTATION = "omniserve.io/max-replicas"


@dataclass(frozen=True)
class Tenancy:
    """What a namespace may have unless its label and annotation say otherwise."""

    classes: frozenset[ServiceClass] = frozenset(ServiceClass)
    max_replicas: int | None = None  # None: no limit
    fault: str | None = None  # what is wrong with the namespace's label or annotation


@dataclass(frozen=True)
class Settings:
    """One operator per cluster; `namespace` is the release's own."""

    namespace: str
    watch_namespaces: tuple[str, ...] = ()  # empty: all
    host: str = "127.0.0.1"
    port: int = 8080
    tenancy: Tenancy = field(default_factory=Tenancy)
    lease_name: str = "omniserve-operator"
    identity: str = "omniserve-operator"
    tls: bool = False  # agents' service ports speak HTTPS
    protect_nodes: bool = False  # from autoscalers, while they are in use
