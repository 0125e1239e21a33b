"""What `plan` looks at: services, nodes, namespaces, as frozen values without Kubernetes' JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from omniserve_crds.conditions import Reason
from omniserve_crds.llmservice import Model, ServiceClass, ServiceState, Spec
from omniserve_crds.servingnode import (
    DeviceReport,
    EngineReport,
    ServiceReport,
    ServingNodeSpec,
    ServingNodeStatus,
)
from omniserve_crds.status import LLMServiceStatus
from omniserve_operator.settings import STALE_AFTER_S, WITHDRAWN_S, Tenancy


@dataclass(frozen=True)
class Verdict:
    """A reason with its words."""

    reason: Reason
    message: str


@dataclass(frozen=True)
class Service:
    """An LLMService; `spec` is None where it does not validate, and `fault` says why."""

    uid: str
    namespace: str
    name: str
    generation: int
    created: str
    resource_version: str
    spec: Spec | None
    fault: Verdict | None = None
    status: LLMServiceStatus = field(default_factory=LLMServiceStatus)

    @property
    def key(self) -> str:
        """`namespace/name`."""
        return f"{self.namespace}/{self.name}"

    @cached_property
    def engine_key(self) -> str:
        """Services with one key share engines; empty where the spec does not validate."""
        return _engine_key(self.namespace, self.spec.model) if self.spec else ""

    @property
    def is_ls(self) -> bool:
        return self.spec is not None and self.spec.service_class is ServiceClass.LS

    @property
    def wanted(self) -> int:
        """Replicas its owner wants now."""
        if self.spec is None or self.spec.state is ServiceState.PAUSED:
            return 0
        return self.spec.replicas

    @property
    def rank(self) -> tuple[bool, int, str, str]:
        """Who is placed first: LS, then priority, then age."""
        priority = self.spec.priority if self.spec else 0
        return (not self.is_ls, -priority, self.created, self.key)


def _engine_key(namespace: str, model: Model) -> str:
    """Hash of (uri, revision, dtype, kvCacheDtype, maxModelLen, credentials' namespace and name).

    Class, SLO, priority and keys are no part of it: they change while the engine runs.
    """
    credentials = model.credentials_secret_ref
    parts = [
        str(model.source),
        model.revision,
        model.dtype.value,
        model.kv_cache_dtype.value,
        model.max_model_len,
        [namespace, credentials.name] if credentials else None,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Taint:
    """A core/v1 Taint."""

    key: str
    value: str
    effect: str


@dataclass(frozen=True)
class AgentPod:
    """The agent on a node."""

    name: str
    namespace: str
    uid: str
    address: str
    ready: bool
    deleting: bool
    daemon_set: str
    template: str  # the pod's controller-revision-hash


@dataclass(frozen=True)
class Node:
    """A Node, the agent on it, and its ServingNode."""

    name: str
    uid: str
    labels: Mapping[str, str] = field(default_factory=dict)
    taints: tuple[Taint, ...] = ()
    cordoned: bool = False
    ready: bool = True
    agent: AgentPod | None = None
    spec: ServingNodeSpec | None = None  # None: no ServingNode of this very Node yet
    status: ServingNodeStatus = field(default_factory=ServingNodeStatus)
    generation: int = 0
    silent_s: float | None = None  # since its agent's last change; None: never heard of
    drained_s: float | None = None  # since its spec says `drain`; None: it does not

    @property
    def reporting(self) -> bool:
        """Its agent has said something lately."""
        return self.silent_s is not None and self.silent_s < STALE_AFTER_S

    def device(self, name: str) -> DeviceReport | None:
        return self._devices.get(name)

    def engines(self, device: str) -> list[EngineReport]:
        """More than one while an engine replaces another."""
        return [e for e in self.status.engines if e.device == device]

    def engine(self, device: str, key: str) -> EngineReport | None:
        """What is said of the engine with this key."""
        return next((e for e in self.engines(device) if e.key == key), None)

    def report(self, uid: str) -> ServiceReport | None:
        return self._reports.get(uid)

    @cached_property
    def _devices(self) -> dict[str, DeviceReport]:
        return {device.id: device for device in self.status.devices}

    @cached_property
    def _reports(self) -> dict[str, ServiceReport]:
        return {report.uid: report for report in self.status.services}


@dataclass(frozen=True)
class World:
    """Everything a plan depends on."""

    services: tuple[Service, ...] = ()
    nodes: tuple[Node, ...] = ()
    tenancies: Mapping[str, Tenancy] = field(default_factory=dict)  # by namespace
    newest_templates: Mapping[str, str] = field(default_factory=dict)  # by DaemonSet
    default_tenancy: Tenancy = field(default_factory=Tenancy)
    # Seconds since a service's address on a node was taken away, by (uid, node).
    withdrawn_s: Mapping[tuple[str, str], float] = field(default_factory=dict)

    def withdrawn(self, uid: str, node: str) -> bool:
        """Nobody finds the service on that node any more."""
        return self.withdrawn_s.get((uid, node), 0.0) >= WITHDRAWN_S

    def tenancy(self, namespace: str) -> Tenancy:
        return self.tenancies.get(namespace, self.default_tenancy)
