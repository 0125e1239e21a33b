"""What the watches have brought, and the World made of it.

Filled by events and by full lists; a full list is what catches deletions that a watch has missed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import structlog

from omniserve_operator import parse
from omniserve_operator.api import (
    ENDPOINT_SLICES,
    ENDPOINTS,
    LLM_SERVICES,
    NAMESPACES,
    NODES,
    PODS,
    SERVICES,
    SERVING_NODES,
    Kind,
    Object,
)
from omniserve_operator.freshness import Freshness
from omniserve_operator.parse import NodeObject, ServingNodeObject
from omniserve_operator.settings import WITHDRAWN_S, Settings, Tenancy
from omniserve_operator.tenancy import tenancy_of
from omniserve_operator.world import AgentPod, Node, Service, Verdict, World

log = structlog.get_logger(__name__)

Value = TypeVar("Value")
Key = tuple[str, str]  # namespace (empty if cluster-scoped), name


@dataclass
class _Table(Generic[Value]):
    """Parsed objects of one kind with the versions they were parsed from."""

    values: dict[Key, Value] = field(default_factory=dict)
    versions: dict[Key, int] = field(default_factory=dict)

    def put(self, key: Key, version: int, value: Value | None) -> None:
        self.versions[key] = version
        if value is None:
            self.values.pop(key, None)
        else:
            self.values[key] = value

    def drop(self, key: Key) -> None:
        self.values.pop(key, None)
        self.versions.pop(key, None)

    def bury(self, key: Key, version: int) -> bool:
        """Gone as of this version: a list that was under way meanwhile does not bring it back.
        False where a newer object of that name is known."""
        if version < self.versions.get(key, -1):
            return False
        self.put(key, version, None)
        return True


class Store:
    """The operator's picture of the cluster; touched by one event loop only."""

    def __init__(self, settings: Settings, freshness: Freshness) -> None:
        self._settings = settings
        self.freshness = freshness
        self._services: _Table[Service] = _Table()
        self._nodes: _Table[NodeObject] = _Table()
        self._serving_nodes: _Table[ServingNodeObject] = _Table()
        self._tenancies: _Table[Tenancy] = _Table()
        self._pods: _Table[tuple[str, AgentPod]] = _Table()
        self._children: dict[Kind, _Table[Object]] = {
            kind: _Table() for kind in (SERVICES, ENDPOINTS, ENDPOINT_SLICES)
        }
        self._tables: dict[Kind, _Table[Any]] = {
            LLM_SERVICES: self._services,
            NODES: self._nodes,
            SERVING_NODES: self._serving_nodes,
            NAMESPACES: self._tenancies,
            PODS: self._pods,
            **self._children,
        }
        self.newest_templates: Mapping[str, str] = {}
        self.faults: dict[str, Verdict] = {}  # found while carrying out, by service uid
        self._withdrawn: dict[str, dict[str, float]] = {}  # by service uid and node: since when
        self._drained: dict[str, float] = {}  # by node: since when its spec says so

    # ---- in ------------------------------------------------------------------------------

    def put(self, kind: Kind, document: Object, now_s: float) -> bool:
        """Take in an object; True if it may change more than figures."""
        key, version = _key(document), _version(document)
        table = self._tables[kind]
        if version <= table.versions.get(key, -1):
            return False
        if kind is SERVING_NODES:
            return self._put_serving_node(key, version, document, now_s)
        table.put(key, version, self._parsed(kind, document))
        return True

    def drop(self, kind: Kind, document: Object) -> None:
        """A watch says that the object is gone."""
        if self._tables[kind].bury(_key(document), _version(document)) and kind is SERVING_NODES:
            self.freshness.forget(document["metadata"]["name"])

    def replace(self, kind: Kind, documents: list[Object], version: str, now_s: float) -> None:
        """A full list: what is not in it and not newer than it is gone."""
        table = self._tables[kind]
        found = {_key(document) for document in documents}
        listed = int(version) if version.isdigit() else 0
        for key in [k for k, v in table.versions.items() if k not in found and v <= listed]:
            table.drop(key)
            if kind is SERVING_NODES:
                self.freshness.forget(key[1])
        for document in documents:
            self.put(kind, document, now_s)

    def _parsed(self, kind: Kind, document: Object) -> object:
        if kind is LLM_SERVICES:
            metadata = document["metadata"]
            watched = self._settings.watch_namespaces
            elsewhere = watched and metadata["namespace"] not in watched
            gone = elsewhere or metadata.get("deletionTimestamp")
            return None if gone else parse.service(document)
        if kind is NODES:
            return parse.node(document)
        if kind is PODS:
            own = document["metadata"]["namespace"] == self._settings.namespace
            return parse.agent_pod(document) if own else None
        if kind is NAMESPACES:
            metadata = document["metadata"]
            labels, annotations = metadata.get("labels"), metadata.get("annotations")
            return tenancy_of(labels or {}, annotations or {}, self._settings.tenancy)
        return document

    def _put_serving_node(self, key: Key, version: int, document: Object, now_s: float) -> bool:
        try:
            new = parse.serving_node(document)
        except parse.ServingNodeError as error:
            log.warning("serving_node_unreadable", node=key[1], error=str(error))
            return False
        if new.spec.drain:
            self._drained.setdefault(new.name, now_s)
        else:
            self._drained.pop(new.name, None)
        before = self._serving_nodes.values.get(key)
        self._serving_nodes.put(key, version, new)
        if new.has_status:
            self.freshness.observe(new.name, new.fingerprint, now_s)
        return before is None or _states(before) != _states(new)

    def note_addresses(self, uid: str, gone: set[str], now_s: float) -> None:
        """Nodes on which the service has a replica but, as was just seen to, no address."""
        before = self._withdrawn.get(uid, {})
        self._withdrawn[uid] = {node: before.get(node, now_s) for node in gone}

    def withdrawing(self, now_s: float) -> bool:
        """Something waits for an address to be forgotten by those who use it."""
        return any(
            now_s - since <= WITHDRAWN_S
            for nodes in self._withdrawn.values()
            for since in nodes.values()
        )

    def forget_others(self, uids: set[str]) -> None:
        """Services that are gone."""
        for memory in (self._withdrawn, self.faults):
            for uid in set(memory) - uids:
                del memory[uid]

    # ---- out -----------------------------------------------------------------------------

    def world(self, now_s: float) -> World:
        """Everything as it is known now."""
        agents = self._agents()
        services = self._services.values.values()
        return World(
            services=tuple(self._with_fault(service) for service in services),
            nodes=tuple(self._node(n, agents, now_s) for n in self._nodes.values.values()),
            tenancies={key[1]: value for key, value in self._tenancies.values.items()},
            newest_templates=self.newest_templates,
            default_tenancy=self._settings.tenancy,
            withdrawn_s={
                (uid, node): now_s - since
                for uid, nodes in self._withdrawn.items()
                for node, since in nodes.items()
            },
        )

    def serving_node(self, name: str) -> ServingNodeObject | None:
        return self._serving_nodes.values.get(("", name))

    def node(self, name: str) -> NodeObject | None:
        return self._nodes.values.get(("", name))

    def child(self, kind: Kind, namespace: str, name: str) -> Object | None:
        """A Service, EndpointSlice or Endpoints of ours."""
        return self._children[kind].values.get((namespace, name))

    def _with_fault(self, service: Service) -> Service:
        fault = self.faults.get(service.uid)
        return replace(service, fault=fault) if fault and service.fault is None else service

    def _agents(self) -> dict[str, AgentPod]:
        """One per node; one that is not on its way out goes first."""
        found: dict[str, AgentPod] = {}
        pods = sorted(self._pods.values.values(), key=lambda p: (p[1].deleting, p[1].name))
        for node, pod in pods:
            found.setdefault(node, pod)
        return found

    def _node(self, node: NodeObject, agents: Mapping[str, AgentPod], now_s: float) -> Node:
        found = self.serving_node(node.name)
        ours = found if found is not None and found.owner_uid == node.uid else None
        base = Node(
            name=node.name,
            uid=node.uid,
            labels=node.labels,
            taints=node.taints,
            cordoned=node.cordoned,
            ready=node.ready,
            agent=agents.get(node.name),
        )
        if ours is None:
            return base
        drained = self._drained.get(node.name)
        return replace(
            base,
            spec=ours.spec,
            status=ours.status,
            generation=ours.generation,
            silent_s=self.freshness.silent_s(node.name, now_s),
            drained_s=None if drained is None else now_s - drained,
        )


def _key(document: Object) -> Key:
    metadata = document["metadata"]
    return metadata.get("namespace", ""), metadata["name"]


def _version(document: Object) -> int:
    """Versions are opaque by contract, numbers in fact, on every server there is."""
    text = str(document["metadata"].get("resourceVersion", ""))
    return int(text) if text.isdigit() else 0


def _states(subject: ServingNodeObject) -> object:
    """What must be acted on at once: all but figures."""
    status = subject.status
    return (
        subject.uid,
        subject.spec,
        status.observed_generation,
        status.address,
        [(d.id, d.healthy) for d in status.devices],
        (status.host_cores, status.host_kv_bytes, status.model_volumes),
        [(e.device, e.key) for e in status.engines],
        [(s.uid, s.state, s.reason, s.observed_generation) for s in status.services],
    )
