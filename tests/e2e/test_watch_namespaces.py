"""An operator for some namespaces: Roles there instead of rights everywhere. Fake agents."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.harness.cluster import SETTLE_S, Cluster
from e2e.harness.control_plane import ControlPlane
from e2e.harness.install import NAMESPACE, installed, kubelet_running, values
from e2e.harness.specs import ls
from e2e.harness.waiting import eventually

WATCHED, OTHER = "watched", "not-watched"
REVIEWS = "/apis/authorization.k8s.io/v1/subjectaccessreviews"


@pytest.fixture(scope="module")
def cluster(control_plane: ControlPlane, workspace: Path) -> Iterator[Cluster]:
    folder, api = workspace / "test_watch_namespaces", control_plane.api
    for name in (WATCHED, OTHER):
        api.create("/api/v1/namespaces", {"metadata": {"name": name}})
    chart = values() | {"watchNamespaces": [WATCHED]}
    with (
        kubelet_running(control_plane, folder, fake_agents=True) as kubelet,
        installed(control_plane, kubelet, folder, chart) as cluster,
    ):
        cluster.add_node("w1")
        cluster.ready("agent", 1)
        yield cluster
    for name in (WATCHED, OTHER):
        api.delete(f"/api/v1/namespaces/{name}")


def _may(cluster: Cluster, namespace: str, verb: str, resource: str) -> bool:
    """What RBAC answers for the operator's account."""
    attributes = {"namespace": namespace, "verb": verb, "resource": resource}
    user = f"system:serviceaccount:{NAMESPACE}:omniserve-operator"
    body = {"spec": {"user": user, "resourceAttributes": attributes}}
    return bool(cluster.api.create(REVIEWS, body)["status"]["allowed"])


def test_services_of_the_named_namespaces_alone_are_served(cluster: Cluster) -> None:
    for namespace in (OTHER, WATCHED):
        secret = {"metadata": {"name": "keys"}, "stringData": {"alice": "key"}}
        cluster.api.create(f"/api/v1/namespaces/{namespace}/secrets", secret)
        cluster.apply(namespace, "chat", ls(auth={"apiKeysSecretRef": {"name": "keys"}}))
    cluster.wait_condition(WATCHED, "chat", "Ready", "True")
    assert cluster.endpoints(WATCHED, "chat")
    eventually(  # events are written after the status
        lambda: cluster.events(WATCHED, "chat", "ReplicasReady"), SETTLE_S, "an event of it"
    )
    assert "status" not in cluster.service(OTHER, "chat")
    assert set(cluster.assignments()) == {f"{WATCHED}/chat"}


@pytest.mark.parametrize(
    ("verb", "resource"), [("get", "secrets"), ("create", "services"), ("create", "endpoints")]
)
def test_rights_end_at_the_named_namespaces(cluster: Cluster, verb: str, resource: str) -> None:
    assert _may(cluster, WATCHED, verb, resource)
    assert not _may(cluster, OTHER, verb, resource)
