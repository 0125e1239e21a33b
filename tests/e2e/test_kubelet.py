"""The test kubelet itself, with plain pods: what the other tests rely on."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest
import requests

from e2e.harness.api import Api, Object
from e2e.harness.waiting import eventually
from e2e.kubelet.kubelet import Kubelet

NODE = "kubelet-test"
POD_TIMEOUT_S = 60

IN_CLUSTER_CLIENT = """
import os, pathlib, signal, sys, time
from kubernetes import client, config
config.load_incluster_config()
answers = []
for call in (
    lambda: client.CoreV1Api().list_namespaced_pod(os.environ["NAMESPACE"]),
    lambda: client.CoreV1Api().list_namespaced_secret(os.environ["NAMESPACE"]),
):
    try:
        call()
        answers.append("200")
    except client.ApiException as error:
        answers.append(str(error.status))
pathlib.Path("/answers/index.html").write_text(" ".join(answers))
try:
    pathlib.Path("/outside").write_text("x")
    print("ROOT IS WRITABLE")
except OSError:
    pass
os.execvp("python", ["python", "-m", "http.server", "8080", "--bind", os.environ["POD_IP"],
                     "--directory", "/answers"])
"""


@pytest.fixture(scope="module")
def node(api: Api, kubelet: Kubelet) -> Iterator[str]:
    kubelet.add_node(NODE)
    yield NODE
    kubelet.lose_node(NODE)
    api.delete(f"/api/v1/nodes/{NODE}")


def _pod(name: str, argv: list[str], **spec: object) -> Object:
    container = {"name": "main", "image": "test", "command": argv}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {"containers": [container], "terminationGracePeriodSeconds": 2, **spec},
    }


def _server(name: str, path: str) -> Object:
    """A Deployment of Python's web server with probes, as non-root on a read-only root."""
    pod_ip = {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}
    where = {"name": "NAMESPACE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}}
    probe = {"httpGet": {"path": path, "port": "web"}, "periodSeconds": 1}
    container = {
        "name": "web",
        "image": "python",
        "command": ["python", "-c", IN_CLUSTER_CLIENT],
        "env": [pod_ip, where],
        "ports": [{"name": "web", "containerPort": 8080}],
        "readinessProbe": probe,
        "volumeMounts": [{"name": "answers", "mountPath": "/answers"}],
        "securityContext": {"readOnlyRootFilesystem": True, "runAsUser": 65532},
    }
    spec = {"containers": [container], "volumes": [{"name": "answers", "emptyDir": {}}]}
    spec["terminationGracePeriodSeconds"] = 1
    labels = {"app": name}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": spec},
        },
    }


def _allow_listing_pods(api: Api, namespace: str) -> None:
    rbac = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}"
    rules = [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}]
    api.create(f"{rbac}/roles", {"metadata": {"name": "lister"}, "rules": rules})
    subject = {"kind": "ServiceAccount", "name": "default", "namespace": namespace}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "lister"}
    binding = {"metadata": {"name": "lister"}, "subjects": [subject], "roleRef": role}
    api.create(f"{rbac}/rolebindings", binding)


def _ready_pods(api: Api, namespace: str) -> list[Object]:
    return [
        pod
        for pod in api.items(f"/api/v1/namespaces/{namespace}/pods")
        for condition in pod.get("status", {}).get("conditions", [])
        if condition["type"] == "Ready" and condition["status"] == "True"
    ]


def _addresses() -> str:
    shown = subprocess.run(
        ["ip", "-o", "addr", "show", "dev", "lo"], capture_output=True, text=True, check=True
    )
    return shown.stdout


@pytest.mark.usefixtures("node")
def test_deployment_becomes_ready_at_its_own_addresses_under_its_own_rights(
    api: Api, namespace: str, kubelet: Kubelet
) -> None:
    _allow_listing_pods(api, namespace)
    deployments = f"/apis/apps/v1/namespaces/{namespace}/deployments"
    api.create(deployments, _server("web", "/index.html"))
    pods = eventually(
        lambda: (ready := _ready_pods(api, namespace)) and len(ready) == 2 and ready,
        POD_TIMEOUT_S,
        "two pods Ready",
    )
    addresses = {pod["status"]["podIP"] for pod in pods}
    assert len(addresses) == 2
    for address in addresses:
        answer = requests.get(f"http://{address}:8080/index.html", timeout=5)
        assert answer.text == "200 403", "may list pods, may not list secrets"
    worker = kubelet.worker(namespace, pods[0]["metadata"]["name"])
    assert "ROOT IS WRITABLE" not in worker.logs()
    assert {uid.real for c in worker.containers for p in c.processes() for uid in [p.uids()]} == {
        65532
    }

    api.delete(f"{deployments}/web")
    eventually(
        lambda: not api.items(f"/api/v1/namespaces/{namespace}/pods"), POD_TIMEOUT_S, "pods gone"
    )
    eventually(
        lambda: not any(address in _addresses() for address in addresses), 10, "addresses gone"
    )


@pytest.mark.usefixtures("node")
def test_unready_pod_is_reported_and_failing_liveness_restarts_it(api: Api, namespace: str) -> None:
    pod = _pod("sick", ["sleep", "600"])
    probe = {"tcpSocket": {"port": 9}, "periodSeconds": 1, "failureThreshold": 2}
    pod["spec"]["containers"][0]["livenessProbe"] = probe
    path = f"/api/v1/namespaces/{namespace}/pods"
    api.create(path, pod)
    found = eventually(
        lambda: (
            (p := api.get(f"{path}/sick"))["status"]
            .get("containerStatuses", [{}])[0]
            .get("restartCount", 0)
            >= 1
            and p
        ),
        POD_TIMEOUT_S,
        "restarted by its liveness probe",
    )
    assert found["status"]["phase"] == "Running"


@pytest.mark.usefixtures("node")
def test_deletion_asks_first_and_kills_after_the_grace_period(
    api: Api, namespace: str, kubelet: Kubelet
) -> None:
    deaf = "import signal, time; signal.signal(15, lambda *a: print('TERM', flush=True))\n"
    deaf += "import subprocess; subprocess.Popen(['sleep', '600'])\nprint('up', flush=True)\n"
    deaf += "while True: time.sleep(1)"
    path = f"/api/v1/namespaces/{namespace}/pods"
    api.create(path, _pod("deaf", ["python", "-c", deaf]))
    worker = eventually(lambda: _worker(kubelet, namespace, "deaf"), POD_TIMEOUT_S, "pod is run")
    eventually(lambda: "up" in worker.logs(), POD_TIMEOUT_S, "the command runs")
    processes = [p for c in worker.containers for p in c.processes()]
    assert len(processes) == 2
    api.delete(f"{path}/deaf")
    eventually(lambda: api.find(f"{path}/deaf") is None, 30, "pod gone")
    assert "TERM" in worker.logs()
    assert not any(p.is_running() and p.status() != "zombie" for p in processes)


@pytest.mark.usefixtures("node")
def test_finished_pods_succeed_or_fail(api: Api, namespace: str) -> None:
    path = f"/api/v1/namespaces/{namespace}/pods"
    for name, command in (("good", "true"), ("bad", "false")):
        api.create(path, _pod(name, [command], restartPolicy="Never"))
    for name, phase in (("good", "Succeeded"), ("bad", "Failed")):
        eventually(
            lambda n=name, p=phase: api.get(f"{path}/{n}")["status"]["phase"] == p,
            POD_TIMEOUT_S,
            f"{name} {phase}",
        )


def _worker(kubelet: Kubelet, namespace: str, name: str) -> object:
    try:
        return kubelet.worker(namespace, name)
    except KeyError:
        return None


def test_a_lost_node_turns_not_ready_and_its_processes_are_gone(
    api: Api, kubelet: Kubelet, namespace: str
) -> None:
    kubelet.add_node("doomed")
    pod = _pod("victim", ["sleep", "600"], nodeName="doomed")
    api.create(f"/api/v1/namespaces/{namespace}/pods", pod)
    worker = eventually(lambda: _worker(kubelet, namespace, "victim"), POD_TIMEOUT_S, "pod is run")
    eventually(lambda: worker.containers, POD_TIMEOUT_S, "container runs")
    kubelet.lose_node("doomed")
    assert not worker.is_alive()
    assert worker.address not in _addresses().split()

    def ready_is_unknown() -> bool:
        conditions = api.get("/api/v1/nodes/doomed")["status"]["conditions"]
        return [c["status"] for c in conditions if c["type"] == "Ready"] == ["Unknown"]

    eventually(ready_is_unknown, POD_TIMEOUT_S, "Node not Ready")
    api.delete("/api/v1/nodes/doomed")
