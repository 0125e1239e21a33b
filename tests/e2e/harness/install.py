"""Installing the chart for a test module, and taking everything away again."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from e2e.harness.api import Object
from e2e.harness.cluster import SETTLE_S, Cluster
from e2e.harness.control_plane import ControlPlane
from e2e.harness.definitions import (
    GROUP_PATH,
    definitions,
    install_definitions,
    nodes_path,
    without_rules,
)
from e2e.harness.helm import Helm, HelmError
from e2e.harness.waiting import eventually
from e2e.kubelet.images import Images
from e2e.kubelet.kubelet import Kubelet

RELEASE = "omniserve"
NAMESPACE = "omniserve-system"
CONTROL_NODE = "control"
MAINTENANCE = "omniserve.io/test-maintenance"
FAKE_AGENT = Path(__file__).resolve().parents[1] / "fake_agent/bin"
ENTRYPOINTS = {"operator": ("omniserve-operator",), "agent": ("omniserve-agent",)}


def values(*, gpus: int = 1, agent_env: dict[str, str] | None = None) -> Object:
    """Chart values of the tests: one pool on labelled nodes, the operator on a node of its own."""
    pool: Object = {"name": "test", "cpu": 1, "memory": "1Gi"}
    pool["nodeSelector"] = {"omniserve.io/test-pool": "yes"}
    # A node may be cleared of services while its agent stays.
    pool["tolerations"] = [{"key": MAINTENANCE, "operator": "Exists"}]
    if gpus:
        pool["gpus"] = gpus
    env = [{"name": name, "value": value} for name, value in (agent_env or {}).items()]
    return {
        "crds": {"install": False},  # 1.20 knows no CEL, and helm refuses such CRDs there
        "agentPools": [pool],
        "agent": {"drainGraceSeconds": 10, "env": env},
        "operator": {"nodeSelector": {"omniserve.io/test-role": "control"}},
        "tests": {"through": "Endpoints", "nodeSelector": {"omniserve.io/test-role": "control"}},
    }


@contextmanager
def kubelet_running(plane: ControlPlane, folder: Path, *, fake_agents: bool) -> Iterator[Kubelet]:
    """A kubelet whose pods get the fake or the real omniserve-agent."""
    images = Images(Path(sys.executable), ENTRYPOINTS, (FAKE_AGENT,) if fake_agents else ())
    kubelet = Kubelet(plane.api, folder, images)
    kubelet.start()
    try:
        yield kubelet
    finally:
        kubelet.stop()


@contextmanager
def installed(
    plane: ControlPlane, kubelet: Kubelet, folder: Path, chart_values: Object
) -> Iterator[Cluster]:
    """The chart on a cluster with one node for the operator; gone without a trace afterwards."""
    install_definitions(plane.api, without_rules(definitions()))
    helm = Helm(plane.kubeconfig, folder / "helm", NAMESPACE, RELEASE)
    cluster = Cluster(plane, kubelet, helm)
    kubelet.add_node(CONTROL_NODE, {"omniserve.io/test-role": "control"})
    cluster.nodes.append(CONTROL_NODE)
    try:
        helm.install(chart_values)
        cluster.ready("operator", 1)
        yield cluster
    finally:
        clear(cluster)


def clear(cluster: Cluster) -> None:
    """Services first, while the operator can still clear up after them; then the release."""
    api = cluster.api
    for service in api.items(f"{GROUP_PATH}/llmservices"):
        meta = service["metadata"]
        api.delete(f"{GROUP_PATH}/namespaces/{meta['namespace']}/llmservices/{meta['name']}")
    try:
        cluster.helm.uninstall()
    except HelmError as error:
        if "not found" not in str(error):
            raise
    finally:
        for node in list(cluster.nodes):
            cluster.remove_node(node)
    api.delete(f"/api/v1/namespaces/{NAMESPACE}")
    for node in api.items(nodes_path()):
        api.delete(nodes_path(node["metadata"]["name"]))
    eventually(
        lambda: api.find(f"/api/v1/namespaces/{NAMESPACE}") is None, SETTLE_S, "namespace gone"
    )
