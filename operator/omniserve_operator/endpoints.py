"""How a service is reached: its Service, and the addresses of replicas that answer. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from omniserve_crds.group import API_VERSION, LLM_SERVICE_KIND
from omniserve_operator.conditions import Seen, seen
from omniserve_operator.placement.result import ServicePlan
from omniserve_operator.world import Node, Service

MANAGED_BY = "omniserve-operator"
SERVICE_PORT, TLS_PORT = 80, 443
MAX_ADDRESSES = 1000  # of one EndpointSlice; a service has at most as many replicas
LABELS = {
    "app.kubernetes.io/name": "omniserve",
    "app.kubernetes.io/part-of": "omniserve",
    "app.kubernetes.io/managed-by": MANAGED_BY,
}

Manifest = dict[str, Any]


def addresses(
    plan: ServicePlan, nodes: Mapping[str, Node], closing: frozenset[str]
) -> list[tuple[str, str]]:
    """(address, node) of replicas that answer, by address; none on nodes that close.

    A node whose agent has fallen silent keeps its address only while nobody else answers: it may
    be the operator's own connection that is broken. A pod that is known to be gone has none.
    """
    answering = [s for s in seen(plan, nodes) if _reachable(s) and s.node.name not in closing]
    fresh = [s for s in answering if s.node.reporting]
    return sorted({(_address(s.node), s.node.name) for s in fresh or answering})


def _reachable(replica: Seen) -> bool:
    node, report = replica.node, replica.report
    if report is None or report.state != "Ready" or not _address(node):
        return False
    drains = replica.replica.phase == "Drains"
    pod = node.agent
    alive = node.ready and pod is not None and pod.ready and not pod.deleting
    # A node that reports says itself whether the engine that answers is the one that is wanted.
    return alive and not drains and (replica.replica.ready or not node.reporting)


def _address(node: Node) -> str:
    """The pod's own word first: a report may be older than the pod."""
    return (node.agent.address if node.agent else "") or node.status.address


def owner(service: Service) -> Manifest:
    return {
        "apiVersion": API_VERSION,
        "kind": LLM_SERVICE_KIND,
        "name": service.name,
        "uid": service.uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }


def _metadata(service: Service, labels: dict[str, str]) -> Manifest:
    return {
        "name": service.name,
        "namespace": service.namespace,
        "labels": LABELS | labels,
        "ownerReferences": [owner(service)],
    }


def service_manifest(service: Service, port: int, *, tls: bool) -> Manifest:
    """A Service without a selector: the operator says who answers."""
    name, number = ("https", TLS_PORT) if tls else ("http", SERVICE_PORT)
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(service, {}),
        "spec": {"ports": [{"name": name, "port": number, "targetPort": port, "protocol": "TCP"}]},
    }


def endpoint_slice_manifest(
    service: Service, port: int, found: Sequence[tuple[str, str]], *, tls: bool
) -> Manifest:
    """discovery.k8s.io/v1: one endpoint per replica that answers."""
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": _metadata(
            service,
            {
                "kubernetes.io/service-name": service.name,
                "endpointslice.kubernetes.io/managed-by": MANAGED_BY,
            },
        ),
        "addressType": "IPv6" if found and ":" in found[0][0] else "IPv4",
        "ports": [_port(port, tls)],
        "endpoints": [
            {
                "addresses": [address],
                "conditions": {"ready": True, "serving": True, "terminating": False},
                "nodeName": node,
            }
            for address, node in found[:MAX_ADDRESSES]
        ],
    }


def endpoints_manifest(
    service: Service, port: int, found: Sequence[tuple[str, str]], *, tls: bool
) -> Manifest:
    """Core Endpoints, for servers without discovery.k8s.io/v1."""
    entries = [{"ip": address, "nodeName": node} for address, node in found[:MAX_ADDRESSES]]
    return {
        "apiVersion": "v1",
        "kind": "Endpoints",
        "metadata": _metadata(service, {}),
        "subsets": [{"addresses": entries, "ports": [_port(port, tls)]}] if entries else [],
    }


def _port(port: int, tls: bool) -> Manifest:
    """Named as in the Service: the name is what joins the two."""
    return {"name": "https" if tls else "http", "port": port, "protocol": "TCP"}
