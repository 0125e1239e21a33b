"""Kubernetes' JSON to the values of `world`. Pure."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from omniserve_crds.conditions import Reason
from omniserve_crds.group import API_VERSION, LLM_SERVICE_KIND
from omniserve_crds.llmservice import LLMService
from omniserve_crds.servingnode import ServingNodeSpec, ServingNodeStatus
from omniserve_crds.status import LLMServiceStatus
from omniserve_crds.violations import violations
from omniserve_operator.world import AgentPod, Service, Taint, Verdict

REVISION_LABEL = "controller-revision-hash"

Object = dict[str, Any]


def service(document: Object) -> Service:
    """An LLMService; what does not validate becomes its fault."""
    metadata = document["metadata"]
    spec, fault = None, None
    try:
        # The server's own metadata is not the author's: only what names the object counts.
        names = {"name": metadata["name"], "namespace": metadata["namespace"]}
        head = {"apiVersion": API_VERSION, "kind": LLM_SERVICE_KIND, "metadata": names}
        spec = LLMService.model_validate(head | {"spec": document.get("spec")}).spec
    except ValidationError as error:
        lines = violations(LLMService, error)
        more = f" (and {len(lines) - 3} more)" if len(lines) > 3 else ""
        fault = Verdict(Reason.INVALID, "; ".join(lines[:3]) + more)
    return Service(
        uid=metadata["uid"],
        namespace=metadata["namespace"],
        name=metadata["name"],
        generation=metadata.get("generation", 1),
        created=metadata.get("creationTimestamp") or "",
        resource_version=metadata["resourceVersion"],
        spec=spec,
        fault=fault,
        status=_status(document.get("status") or {}),
    )


def _status(document: Object) -> LLMServiceStatus:
    """Ours; one that cannot be read (an edited one) is written anew."""
    try:
        return LLMServiceStatus.model_validate(document)
    except ValidationError:
        return LLMServiceStatus()


@dataclass(frozen=True)
class NodeObject:
    """A core/v1 Node."""

    name: str
    uid: str
    labels: dict[str, str]
    annotations: dict[str, str]
    taints: tuple[Taint, ...]
    cordoned: bool
    ready: bool


def node(document: Object) -> NodeObject:
    metadata, spec = document["metadata"], document.get("spec") or {}
    taints = spec.get("taints") or []
    return NodeObject(
        name=metadata["name"],
        uid=metadata["uid"],
        labels=metadata.get("labels") or {},
        annotations=metadata.get("annotations") or {},
        taints=tuple(Taint(t["key"], t.get("value") or "", t["effect"]) for t in taints),
        cordoned=bool(spec.get("unschedulable")),
        ready=_condition(document, "Ready") == "True",
    )


def _condition(document: Object, kind: str) -> str:
    conditions = (document.get("status") or {}).get("conditions") or []
    return next((c["status"] for c in conditions if c["type"] == kind), "Unknown")


def agent_pod(document: Object) -> tuple[str, AgentPod] | None:
    """(node's name, the agent there); None for a pod that is none, or has ended."""
    metadata, status = document["metadata"], document.get("status") or {}
    node_name = (document.get("spec") or {}).get("nodeName")
    owners = metadata.get("ownerReferences") or []
    # Without a DaemonSet there is nothing that would make a new one: it is never upgraded.
    daemon_set = next((o["name"] for o in owners if o["kind"] == "DaemonSet"), "")
    if not node_name or status.get("phase") in ("Failed", "Succeeded"):
        return None
    return node_name, AgentPod(
        name=metadata["name"],
        namespace=metadata["namespace"],
        uid=metadata["uid"],
        address=status.get("podIP") or "",
        ready=_condition(document, "Ready") == "True",
        deleting=bool(metadata.get("deletionTimestamp")),
        daemon_set=daemon_set,
        template=(metadata.get("labels") or {}).get(REVISION_LABEL, ""),
    )


@dataclass(frozen=True)
class ServingNodeObject:
    """A ServingNode with what a write of it needs."""

    name: str
    uid: str
    owner_uid: str
    generation: int
    resource_version: str
    spec: ServingNodeSpec
    status: ServingNodeStatus
    fingerprint: str  # of its status
    has_status: bool


class ServingNodeError(Exception):
    """A ServingNode that cannot be read."""


def serving_node(document: Object) -> ServingNodeObject:
    metadata = document["metadata"]
    status = document.get("status") or {}
    owners = metadata.get("ownerReferences") or []
    try:
        spec = ServingNodeSpec.model_validate(document.get("spec") or {})
        said = ServingNodeStatus.model_validate(status)
    except ValidationError as error:
        raise ServingNodeError(f"ServingNode {metadata['name']}: {error}") from error
    text = json.dumps(status, sort_keys=True).encode()
    return ServingNodeObject(
        name=metadata["name"],
        uid=metadata["uid"],
        owner_uid=next((o["uid"] for o in owners if o["kind"] == "Node"), ""),
        generation=metadata.get("generation", 1),
        resource_version=metadata["resourceVersion"],
        spec=spec,
        status=said,
        fingerprint=hashlib.sha256(text).hexdigest(),
        has_status=bool(status),
    )


def newest_templates(revisions: list[Object]) -> dict[str, str]:
    """The newest template hash of each DaemonSet, from its ControllerRevisions."""
    newest: dict[str, tuple[int, str]] = {}
    for document in revisions:
        metadata = document["metadata"]
        owners = metadata.get("ownerReferences") or []
        name = next((o["name"] for o in owners if o["kind"] == "DaemonSet"), None)
        template = (metadata.get("labels") or {}).get(REVISION_LABEL)
        if name is None or template is None:
            continue
        newest[name] = max(newest.get(name, (0, "")), (document.get("revision", 0), template))
    return {name: template for name, (_, template) in newest.items()}
