"""Deletion leaves nothing behind: with the operator, without it, and after `helm uninstall`."""

from __future__ import annotations

import pytest

from e2e.harness.api import Object
from e2e.harness.cel_server import CRDS
from e2e.harness.cluster import Cluster
from e2e.harness.definitions import services_path
from e2e.harness.install import NAMESPACE
from e2e.harness.specs import be, ls
from e2e.harness.waiting import eventually

NODE = "cleared"
SETTLE_S = 90
DEPLOYMENT = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/omniserve-operator"


@pytest.fixture(scope="module", autouse=True)
def node(cluster: Cluster) -> None:
    cluster.add_node(NODE)
    cluster.ready("agent", 1)


def _pair(cluster: Cluster, namespace: str) -> list[str]:
    """An LS service with keys and a BE service, Ready; their uids."""
    secret = {"metadata": {"name": "keys"}, "stringData": {"alice": "key"}}
    cluster.api.create(f"/api/v1/namespaces/{namespace}/secrets", secret)
    auth = {"apiKeysSecretRef": {"name": "keys"}}
    made = [
        cluster.apply(namespace, "chat", ls(auth=auth)),
        cluster.apply(namespace, "batch", be()),
    ]
    for name in ("chat", "batch"):
        cluster.wait_condition(namespace, name, "Ready", "True")
    return [found["metadata"]["uid"] for found in made]


def _traces(cluster: Cluster, namespace: str) -> list[str]:
    """Everything in the cluster that stems from the pair."""
    api = cluster.api
    kinds = {
        "services": f"/api/v1/namespaces/{namespace}/services",
        "endpoints": f"/api/v1/namespaces/{namespace}/endpoints",
        "slices": f"/apis/discovery.k8s.io/v1beta1/namespaces/{namespace}/endpointslices",
        "llmservices": services_path(namespace),
    }
    found = [f"{kind}/{o['metadata']['name']}" for kind, p in kinds.items() for o in api.items(p)]
    found += [f"assignment {key}" for key in cluster.assignments()]
    found += _mirrors(cluster)
    return found


def _mirrors(cluster: Cluster) -> list[str]:
    secrets = cluster.api.items(f"/api/v1/namespaces/{NAMESPACE}/secrets")
    names = [secret["metadata"]["name"] for secret in secrets]
    return [f"secret {n}" for n in names if n.startswith(("svc-", "cred-"))]


def _delete_pair(cluster: Cluster, namespace: str) -> None:
    for name in ("chat", "batch"):
        cluster.api.delete(services_path(namespace, name))


def test_deleted_services_leave_nothing(cluster: Cluster, namespace: str) -> None:
    _pair(cluster, namespace)
    assert _traces(cluster, namespace)
    _delete_pair(cluster, namespace)
    eventually(lambda: not _traces(cluster, namespace), SETTLE_S, "no trace is left")


def test_deleted_while_the_operator_is_down_it_catches_up(cluster: Cluster, namespace: str) -> None:
    _pair(cluster, namespace)
    cluster.api.patch(DEPLOYMENT, {"spec": {"replicas": 0}})
    eventually(lambda: not cluster.pods("operator"), SETTLE_S, "operator gone")
    _delete_pair(cluster, namespace)
    eventually(
        lambda: not cluster.api.items(services_path(namespace)),
        SETTLE_S,
        "no finalizer keeps the services",
    )
    assert cluster.assignments(), "agents keep serving the last spec meanwhile"
    cluster.api.patch(DEPLOYMENT, {"spec": {"replicas": 1}})
    eventually(lambda: not _traces(cluster, namespace), SETTLE_S, "the operator caught up")


def test_deleted_namespace_leaves_nothing(cluster: Cluster, namespace: str) -> None:
    _pair(cluster, namespace)
    path = f"/api/v1/namespaces/{namespace}"
    cluster.api.delete(path)
    eventually(lambda: cluster.api.find(path) is None, SETTLE_S, "namespace gone")
    eventually(lambda: not cluster.assignments(), SETTLE_S, "assignments withdrawn")
    eventually(lambda: not _mirrors(cluster), SETTLE_S, "mirrored keys gone")


def test_after_helm_uninstall_services_can_be_deleted_and_definitions_stay(
    cluster: Cluster, namespace: str
) -> None:
    """Last in this file: it takes the release away."""
    _pair(cluster, namespace)
    cluster.helm.uninstall()
    assert {s["metadata"]["name"] for s in _services(cluster, namespace)} == {"chat", "batch"}
    _delete_pair(cluster, namespace)
    eventually(
        lambda: not cluster.api.items(f"/api/v1/namespaces/{namespace}/services"),
        SETTLE_S,
        "Services went with their owners",
    )
    assert not _services(cluster, namespace)
    for name in ("llmservices.omniserve.io", "servingnodes.omniserve.io"):
        assert cluster.api.find(f"{CRDS}/{name}") is not None
    eventually(lambda: not _mirrors(cluster), SETTLE_S, "mirrored keys gone")
    eventually(lambda: not _owned_by_release(cluster), SETTLE_S, "nothing of the release is left")


def _services(cluster: Cluster, namespace: str) -> list[Object]:
    return cluster.api.items(services_path(namespace))


def _owned_by_release(cluster: Cluster) -> list[str]:
    """Objects that carry the release's labels, wherever they are."""
    paths = [
        f"/api/v1/namespaces/{NAMESPACE}/{kind}"
        for kind in ("pods", "services", "serviceaccounts", "configmaps", "secrets")
    ]
    paths += [f"/apis/apps/v1/namespaces/{NAMESPACE}/{k}" for k in ("deployments", "daemonsets")]
    paths += [
        f"/apis/rbac.authorization.k8s.io/v1/{k}" for k in ("clusterroles", "clusterrolebindings")
    ]
    paths += ["/apis/scheduling.k8s.io/v1/priorityclasses"]
    selector = "app.kubernetes.io/part-of=omniserve"
    return [
        o["metadata"]["name"]
        for path in paths
        for o in cluster.api.items(path, labelSelector=selector)
    ]
