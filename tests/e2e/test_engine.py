"""The real engine on the CPU behind the whole chain: chart, operator, agent, SmolLM2, clients.

One installation for all tests of this file, in order: what an earlier one set up, later ones use.
"""

from __future__ import annotations

import json
import re
import ssl
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import requests

from e2e.harness.api import Object
from e2e.harness.cluster import MODEL, SETTLE_S, Cluster
from e2e.harness.control_plane import ControlPlane
from e2e.harness.install import installed, kubelet_running, values
from e2e.harness.specs import be, ls
from e2e.harness.traffic import Sender, Traffic
from e2e.harness.waiting import eventually
from support.certificates import write_pair

NODE = "real"
START_S = 420  # the device is measured at first start, on cores that others use too
HELM_TEST_S = 240
FLIP_S = 90
OUTAGE_S = 60
NAMESPACE = "tenant"
MODELS = "/models-of-the-node"
DELAY_FILE = "/tmp/delay-ms"
TPOT_MS = 500
DELAY_MS = 700  # three tokens take two seconds: some requests fit into each window of 10 s
ENVIRONMENT = {
    "OMNISERVE_TESTING": "1",
    "OMNISERVE_TEST_ITERATION_DELAY_FILE": DELAY_FILE,
    "OMNISERVE_BE_RESIDENCY": "false",  # BE on the host at once: piggybacking must be seen
    "OMNISERVE_SHARE_CORES": "true",
}


def _chart() -> Object:
    """The chart's values of this file."""
    chart = values(gpus=0, agent_env=ENVIRONMENT)
    chart["agentPools"][0] |= {"cpu": 2, "memory": "6Gi"}
    chart["agent"]["cache"] = {"hostPath": MODELS}  # a new agent finds models and profiles there
    chart["agent"]["admission"] = "off"  # else what would miss under the delay is refused
    return chart


@dataclass(frozen=True)
class Hybrid:
    """`chat` (LS) and `batch` (BE) of one model, each with keys of its own, on one node."""

    cluster: Cluster

    def url(self, name: str) -> str:
        return self.cluster.url(NAMESPACE, name)

    def complete(
        self, name: str, key: str | None, *, model: str | None = None, tokens: int = 8
    ) -> requests.Response:
        """One completion through the service's own endpoint."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        body = {"model": model or name, "prompt": "One, two, three,", "max_tokens": tokens}
        return requests.post(
            f"{self.url(name)}/v1/completions", json=body, headers=headers, timeout=120
        )

    def metrics(self) -> str:
        address = self.cluster.agent_pod(NODE)["status"]["podIP"]
        return requests.get(f"http://{address}:8081/metrics", timeout=30).text

    def metric(self, name: str) -> float:
        """The sum over all labels."""
        found = re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", self.metrics(), re.MULTILINE)
        return sum(map(float, found))

    def engine_pids(self) -> set[int]:
        """Processes of the engine, as this machine numbers them."""
        worker = self.cluster.worker(self.cluster.agent_pod(NODE))
        processes = [p for c in worker.containers for p in c.processes()]
        return {
            p.pid for p in processes if "omniserve_agent.engine --config" in " ".join(_command(p))
        }

    def delay(self, milliseconds: int) -> None:
        """The engine adds so much to every iteration from now on."""
        worker = self.cluster.worker(self.cluster.agent_pod(NODE))
        worker.volume_file("tmp", "delay-ms").write_text(str(milliseconds))


def _command(process: psutil.Process) -> list[str]:
    try:
        found: list[str] = process.cmdline()
    except psutil.NoSuchProcess:
        return []
    return found


@pytest.fixture(scope="module")
def cluster(control_plane: ControlPlane, workspace: Path) -> Iterator[Cluster]:
    folder = workspace / "test_engine"
    models = folder / "nodes" / NODE / MODELS.lstrip("/")
    models.mkdir(parents=True)
    models.chmod(0o777)  # the agents' user writes there
    with (
        kubelet_running(control_plane, folder, fake_agents=False) as kubelet,
        installed(control_plane, kubelet, folder, _chart()) as cluster,
    ):
        cluster.api.create("/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
        try:
            yield cluster
        finally:
            cluster.api.delete(f"/api/v1/namespaces/{NAMESPACE}")


@pytest.fixture(scope="module")
def hybrid(cluster: Cluster) -> Hybrid:
    cluster.add_node(NODE, gpus=0)
    cluster.ready("agent", 1)
    for name in ("chat", "batch"):
        secret = {"metadata": {"name": f"{name}-keys"}, "stringData": {"key": f"key-of-{name}"}}
        cluster.api.create(f"/api/v1/namespaces/{NAMESPACE}/secrets", secret)
        spec = ls(MODEL) if name == "chat" else be(MODEL)
        spec["auth"] = {"apiKeysSecretRef": {"name": f"{name}-keys"}}
        if name == "chat":  # loose on a shared machine; the injected delay is beyond it
            spec["slo"] |= {"ttftMs": 20_000, "tpotMs": TPOT_MS, "minSamples": 2}
        cluster.apply(NAMESPACE, name, spec)
    for name in ("chat", "batch"):
        cluster.wait_condition(NAMESPACE, name, "Ready", "True", timeout_s=START_S)
    return Hybrid(cluster)


def test_both_are_ready_on_one_node_with_one_engine(hybrid: Hybrid) -> None:
    found = hybrid.cluster.condition(NAMESPACE, "chat", "SLOAttained")
    assert (found["status"], found["reason"]) == ("Unknown", "NoTraffic")
    places = hybrid.cluster.assignments()
    assert places == {f"{NAMESPACE}/chat": [NODE], f"{NAMESPACE}/batch": [NODE]}
    assert len(hybrid.cluster.serving_node(NODE)["status"]["engines"]) == 1
    assert len(hybrid.engine_pids()) == 1


@pytest.mark.parametrize("name", ["chat", "batch"])
def test_each_answers_through_its_own_endpoint_with_its_own_keys(hybrid: Hybrid, name: str) -> None:
    other = "batch" if name == "chat" else "chat"
    answer = hybrid.complete(name, f"key-of-{name}")
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["completion_tokens"] == 8
    assert hybrid.complete(name, f"key-of-{other}").status_code == 401
    assert hybrid.complete(name, None).status_code == 401
    assert hybrid.complete(name, f"key-of-{name}", model=other).status_code == 404


def test_be_rows_piggyback_on_ls_iterations(hybrid: Hybrid) -> None:
    before = hybrid.metric("omniserve_engine_joins_total")
    with ThreadPoolExecutor(4) as pool:
        batch = [pool.submit(hybrid.complete, "batch", "key-of-batch", tokens=48) for _ in range(3)]
        chat = pool.submit(hybrid.complete, "chat", "key-of-chat", tokens=48)
        answers = [future.result() for future in [*batch, chat]]
    assert [answer.status_code for answer in answers] == [200] * 4
    assert hybrid.metric("omniserve_engine_joins_total") > before
    reports = hybrid.cluster.serving_node(NODE)["status"]["engines"]
    eventually(
        lambda: hybrid.cluster.serving_node(NODE)["status"]["engines"][0]["piggybackedRows"] > 0,
        FLIP_S,
        f"piggybacked rows reported: {reports}",
    )


def _sender(name: str, tokens: int) -> Sender:
    """Sends one completion of `tokens` to the service."""

    def send(session: requests.Session, url: str) -> None:
        body = {"model": name, "prompt": "One, two, three,", "max_tokens": tokens}
        headers = {"Authorization": f"Bearer key-of-{name}"}
        answer = session.post(f"{url}/v1/completions", json=body, headers=headers, timeout=120)
        answer.raise_for_status()

    return send


_send_chat = _sender("chat", 3)


def test_be_is_told_which_ls_service_it_yields_to(hybrid: Hybrid) -> None:
    """Under a tight objective: a loose one leaves BE most iterations, and nothing holds it back."""
    cluster, pids = hybrid.cluster, hybrid.engine_pids()
    loose = cluster.service(NAMESPACE, "chat")["spec"]["slo"]
    tight = {"ttftMs": 2000, "tpotMs": 100, "minSamples": 1000}  # no verdict on SLOAttained here
    cluster.apply(NAMESPACE, "chat", {"slo": tight})
    chat = Traffic(cluster, NAMESPACE, "chat", _sender("chat", 48))
    batch = Traffic(cluster, NAMESPACE, "batch", _sender("batch", 48))
    with chat, batch:
        held = cluster.wait_condition(
            *(NAMESPACE, "batch", "Throttled", "True", "YieldingToLS"), FLIP_S
        )
    assert f"{NAMESPACE}/chat" in held["message"]
    assert chat.failures == batch.failures == []
    cluster.apply(NAMESPACE, "chat", {"slo": loose})
    cluster.wait_condition(NAMESPACE, "chat", "Ready", "True")
    assert hybrid.engine_pids() == pids, "an objective changes while the engine runs"


def test_slo_attained_is_measured_missed_under_a_delay_and_back(hybrid: Hybrid) -> None:
    cluster = hybrid.cluster

    def told(status: str, reason: str) -> Object:
        return cluster.wait_condition(NAMESPACE, "chat", "SLOAttained", status, reason, FLIP_S)

    with Traffic(cluster, NAMESPACE, "chat", _send_chat) as traffic:
        assert re.search(r"\d", told("True", "Attained")["message"])
        hybrid.delay(DELAY_MS)
        missed = told("False", "TPOTMissed")
        assert NODE in missed["message"]
        assert cluster.condition(NAMESPACE, "chat", "Ready")["status"] == "True"
        hybrid.delay(0)
        told("True", "Attained")
    assert traffic.failures == []

    def missed_told() -> list[str]:
        told = [e["reason"] for e in cluster.events(NAMESPACE, "chat") if "SLO" in e["message"]]
        return [reason for reason in told if reason == "TPOTMissed"]

    eventually(missed_told, SETTLE_S, "an event of it")  # written after the status
    assert len(missed_told()) == 1


def test_api_server_away_for_a_minute_disturbs_no_request(hybrid: Hybrid) -> None:
    cluster = hybrid.cluster
    before = cluster.condition(NAMESPACE, "chat", "Ready")
    pids = hybrid.engine_pids()
    with Traffic(cluster, NAMESPACE, "chat", _send_chat) as traffic:
        cluster.plane.stop_apiserver()
        try:
            threading.Event().wait(OUTAGE_S)
            answered = traffic.answered
        finally:
            cluster.plane.start_apiserver()
            cluster.plane.restart_controllers()
        assert answered > 0
        cluster.apply(NAMESPACE, "batch", {"priority": 7})
        cluster.wait_condition(NAMESPACE, "batch", "Ready", "True")
        after = cluster.wait_condition(NAMESPACE, "chat", "Ready", "True")
    assert traffic.failures == []
    assert after["lastTransitionTime"] == before["lastTransitionTime"], "it was Ready throughout"
    assert hybrid.engine_pids() == pids


def test_chart_upgrade_under_traffic_restarts_no_engine(hybrid: Hybrid) -> None:
    cluster = hybrid.cluster
    pids = hybrid.engine_pids()
    operators = {p["metadata"]["uid"] for p in cluster.pods("operator")}
    chart = _chart()
    chart["operator"]["logLevel"] = "debug"
    with Traffic(cluster, NAMESPACE, "chat", _send_chat) as traffic:
        cluster.helm.install(chart)
        eventually(
            lambda: {p["metadata"]["uid"] for p in cluster.pods("operator")}.isdisjoint(operators),
            FLIP_S,
            "a new operator",
        )
        cluster.ready("operator", 1)
        cluster.apply(NAMESPACE, "chat", {"priority": 3})
        cluster.wait_condition(NAMESPACE, "chat", "Ready", "True")
    assert hybrid.engine_pids() == pids
    assert traffic.answered > 0
    assert traffic.failures == []


def test_helm_test_passes(hybrid: Hybrid) -> None:
    assert "Succeeded" in hybrid.cluster.helm.test(HELM_TEST_S)


def test_killed_agent_comes_back_with_its_services(hybrid: Hybrid) -> None:
    cluster = hybrid.cluster
    pids = hybrid.engine_pids()
    worker = cluster.worker(cluster.agent_pod(NODE))
    for container in worker.containers:
        container.kill()
    assert not any(psutil.pid_exists(pid) for pid in pids), "no engine outlives its agent"
    cluster.wait_condition(NAMESPACE, "chat", "Ready", "False", timeout_s=FLIP_S)
    assert cluster.endpoints(NAMESPACE, "chat") == []
    for name in ("chat", "batch"):
        cluster.wait_condition(NAMESPACE, name, "Ready", "True", timeout_s=START_S)
    assert hybrid.complete("chat", "key-of-chat").status_code == 200


def _asked_by_https(address: tuple[str, int], certificate: Path) -> int:
    """The answer's code, from a server that shows exactly this certificate."""
    trusting = ssl.create_default_context(cafile=certificate)
    trusting.check_hostname = False  # the pod's address was not known when it was made
    body = {"model": "chat", "prompt": "One, two, three,", "max_tokens": 4}
    request = urllib.request.Request(
        f"https://{address[0]}:{address[1]}/v1/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json", "Authorization": "Bearer key-of-chat"},
    )
    with urllib.request.urlopen(request, context=trusting, timeout=120) as answer:
        code: int = answer.status
    return code


def test_an_upgrade_to_https_replaces_the_agent_and_serves_with_the_secrets_certificate(
    hybrid: Hybrid, tmp_path: Path
) -> None:
    cluster = hybrid.cluster
    pair = write_pair(tmp_path / "tls")
    secret: Object = {"metadata": {"name": "services-tls"}, "type": "kubernetes.io/tls"}
    secret["stringData"] = {name: (pair / name).read_text() for name in ("tls.crt", "tls.key")}
    cluster.api.create(f"/api/v1/namespaces/{cluster.helm.namespace}/secrets", secret)
    before = cluster.agent_pod(NODE)["metadata"]["uid"]
    chart = _chart()
    chart["agent"]["tls"] = {"secretName": "services-tls"}
    cluster.helm.install(chart)
    eventually(lambda: cluster.agent_pod(NODE)["metadata"]["uid"] != before, START_S, "a new agent")
    eventually(lambda: cluster.endpoints(NAMESPACE, "chat"), START_S, "its address")
    cluster.wait_condition(NAMESPACE, "chat", "Ready", "True", timeout_s=START_S)
    (address,) = cluster.endpoints(NAMESPACE, "chat")
    assert _asked_by_https(address, pair / "tls.crt") == 200
    assert cluster.service(NAMESPACE, "chat")["status"]["url"].startswith("https://")
    found = cluster.api.get(f"/api/v1/namespaces/{NAMESPACE}/services/chat")
    assert [port["port"] for port in found["spec"]["ports"]] == [443]


def test_deleted_services_stop_the_engine(hybrid: Hybrid) -> None:
    for name in ("chat", "batch"):
        hybrid.cluster.api.delete(
            f"/apis/omniserve.io/v1alpha1/namespaces/{NAMESPACE}/llmservices/{name}"
        )
    eventually(lambda: not hybrid.engine_pids(), FLIP_S, "no engine runs")
    assert hybrid.cluster.serving_node(NODE)["spec"].get("engines", []) == []
