"""Operator and chart: placement, endpoints, refusals, changes, tenancy, secrets. Fake agents."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from pydantic import ValidationError

from e2e.harness.api import Api
from e2e.harness.cluster import Cluster
from e2e.harness.definitions import nodes_path, services_path
from e2e.harness.install import NAMESPACE
from e2e.harness.specs import be, ls
from e2e.harness.waiting import eventually
from omniserve_crds.conditions import ConditionType
from omniserve_crds.llmservice import LLMService
from omniserve_crds.violations import violations
from support.invalid_manifests import INVALID, Case

NODES = ("n1", "n2")
SETTLE_S = 60
# 1.20 takes empty strings for null and refuses them itself.
REFUSED_BY_OPERATOR = [
    case for case in INVALID if case.refused_by in ("cel", "operator") and case.value != ""
]


@pytest.fixture(scope="module", autouse=True)
def nodes(cluster: Cluster) -> None:
    """Two nodes with one device each."""
    for name in NODES:
        cluster.add_node(name)
    cluster.ready("agent", len(NODES))


@pytest.fixture(autouse=True)
def nothing_left_over(cluster: Cluster, namespace: str) -> object:
    """Each test begins with free devices."""
    yield
    for service in cluster.api.items(services_path(namespace)):
        cluster.api.delete(services_path(namespace, service["metadata"]["name"]))
    eventually(
        lambda: not any(key.startswith(f"{namespace}/") for key in cluster.assignments()),
        SETTLE_S,
        "assignments withdrawn",
    )


def _scale(api: Api, namespace: str, name: str, replicas: int) -> None:
    api.patch(f"{services_path(namespace, name)}/scale", {"spec": {"replicas": replicas}})


def test_ls_and_be_of_one_model_share_a_device_and_are_ready(
    cluster: Cluster, namespace: str
) -> None:
    cluster.apply(namespace, "chat", ls())
    cluster.apply(namespace, "batch", be())
    for name in ("chat", "batch"):
        cluster.wait_condition(namespace, name, "Ready", "True")
        cluster.wait_condition(namespace, name, "Serving", "True")
    places = cluster.assignments()
    assert places[f"{namespace}/chat"] == places[f"{namespace}/batch"]
    node = cluster.serving_node(places[f"{namespace}/chat"][0])
    assert len(node["spec"]["engines"]) == 1
    ports = {a["port"] for a in node["spec"]["assignments"]}
    assert len(ports) == 2
    assert all(20_000 <= port <= 29_999 for port in ports)


def test_requests_reach_each_service_through_its_own_service(
    cluster: Cluster, namespace: str
) -> None:
    cluster.apply(namespace, "chat", ls())
    cluster.apply(namespace, "batch", be())
    for name in ("chat", "batch"):
        cluster.wait_condition(namespace, name, "Ready", "True")
        answer = requests.get(cluster.url(namespace, name), timeout=10).json()
        assert answer["service"] == f"{namespace}/{name}"
        service = cluster.api.get(f"/api/v1/namespaces/{namespace}/services/{name}")
        assert service["spec"]["ports"][0]["port"] == 80
        assert "selector" not in service["spec"]
        assert service["metadata"]["ownerReferences"][0]["name"] == name


def test_columns_of_kubectl_get(cluster: Cluster, namespace: str) -> None:
    cluster.apply(namespace, "chat", ls())
    cluster.wait_condition(namespace, "chat", "Ready", "True")
    cluster.apply(namespace, "batch", be())
    cluster.wait_condition(namespace, "batch", "Ready", "True")
    rows = cluster.api.table(services_path(namespace))
    (row,) = [{k.upper(): v for k, v in r.items()} for r in rows if r["Name"] == "chat"]
    assert (row["CLASS"], row["READY"], row["MODEL"]) == ("LS", "True", "file:///models/a")
    assert str(row["REPLICAS"]).startswith("1")
    assert row["URL"].startswith("http://chat.")
    nodes = {r["Name"]: r for r in cluster.api.table(nodes_path())}
    assert (nodes[row["NODES"]]["Engines"], nodes[row["NODES"]]["Services"]) == ("1/1", "2/2")


def test_every_condition_is_told_at_first_sight(cluster: Cluster, namespace: str) -> None:
    cluster.apply(namespace, "chat", ls(placement={"nodeSelector": {"no": "such"}}))
    cluster.wait_condition(namespace, "chat", "Scheduled", "False", "NoMatchingNodes")
    told = {c["type"] for c in cluster.service(namespace, "chat")["status"]["conditions"]}
    assert told == {str(kind) for kind in ConditionType} - {"Throttled"}


def _expected_line(case: Case, name: str) -> str:
    document = case.manifest()
    if not case.path.startswith("metadata"):
        document["metadata"]["name"] = name
    with pytest.raises(ValidationError) as refusal:
        LLMService.model_validate(document)
    return violations(LLMService, refusal.value)[0]


def test_operator_refuses_what_this_server_lets_through_and_takes_it_when_mended(
    cluster: Cluster, namespace: str
) -> None:
    """1.20 knows no CEL: every rule is the operator's to hold there, in the same words."""
    refused = {}
    for number, case in enumerate(REFUSED_BY_OPERATOR):
        document = case.manifest()
        named = case.path.startswith("metadata")
        name = document["metadata"]["name"] if named else f"case-{number}"
        document["metadata"] = {"name": name, "namespace": namespace}
        cluster.api.create(services_path(namespace), document)
        refused[name] = _expected_line(case, name)
    for name, line in refused.items():
        found = cluster.wait_condition(namespace, name, "Accepted", "False", "Invalid")
        assert line.split("; ")[0] in found["message"]
    assert len(refused) >= 25
    assert not any(key.startswith(f"{namespace}/") for key in cluster.assignments())
    mended = {"spec": None} | {"spec": ls()}
    cluster.api.patch(services_path(namespace, "case-0"), mended)
    cluster.wait_condition(namespace, "case-0", "Accepted", "True", "Valid")


def test_capacity_refusal_has_numbers_and_clears_when_a_node_joins(
    cluster: Cluster, namespace: str
) -> None:
    for model in ("a", "b", "c"):
        cluster.apply(namespace, model, ls(f"file:///models/{model}"))
    ready = lambda: [  # noqa: E731
        m for m in "abc" if cluster.condition(namespace, m, "Ready").get("status") == "True"
    ]
    eventually(lambda: len(ready()) == 2, SETTLE_S, "two of three models Ready")
    (waiting,) = set("abc") - set(ready())
    refusal = cluster.wait_condition(
        namespace, waiting, "Scheduled", "False", "InsufficientCapacity"
    )
    assert any(digit in refusal["message"] for digit in "0123456789")
    cluster.add_node("n3")
    cluster.wait_condition(namespace, waiting, "Ready", "True")
    cluster.remove_node("n3")


def _planned(cluster: Cluster, namespace: str, file: Path, uri: str) -> tuple[int, str]:
    """`omniserve-operator plan` for one more LS service: exit code and what it says."""
    document = {"apiVersion": "omniserve.io/v1alpha1", "kind": "LLMService", "spec": ls(uri)}
    document["metadata"] = {"name": "newcomer", "namespace": namespace}
    file.write_text(json.dumps(document))
    program = str(Path(sys.executable).with_name("omniserve-operator"))
    done = subprocess.run(
        [program, "plan", "--dry-run", "-f", str(file), "--namespace", NAMESPACE],
        env=os.environ | {"KUBECONFIG": str(cluster.plane.kubeconfig)},
        capture_output=True,
        text=True,
        timeout=SETTLE_S,
    )
    return done.returncode, done.stdout + done.stderr


def test_plan_answers_from_the_live_cluster_and_changes_nothing(
    cluster: Cluster, namespace: str, tmp_path: Path
) -> None:
    file = tmp_path / "newcomer.yaml"
    for name, uri in (("chat", "file:///models/a"), ("other", "file:///models/b")):
        cluster.apply(namespace, name, ls(uri))
        cluster.wait_condition(namespace, name, "Ready", "True")
    code, said = _planned(cluster, namespace, file, "file:///models/a")
    assert code == 0, said
    assert f"joins the engine of {namespace}/chat: adds" in said
    assert f"ms to {namespace}/chat's TPOT" in said
    code, said = _planned(cluster, namespace, file, "file:///models/c")
    assert code == 1, said
    assert f"{namespace}/newcomer: refused: InsufficientCapacity" in said
    assert set(cluster.assignments()) == {f"{namespace}/chat", f"{namespace}/other"}


def test_no_matching_node_clears_when_one_matches(cluster: Cluster, namespace: str) -> None:
    cluster.apply(namespace, "chat", ls(placement={"nodeSelector": {"zone": "b"}}))
    cluster.wait_condition(namespace, "chat", "Scheduled", "False", "NoMatchingNodes")
    cluster.api.patch("/api/v1/nodes/n2", {"metadata": {"labels": {"zone": "b"}}})
    cluster.wait_condition(namespace, "chat", "Ready", "True")
    assert cluster.assignments()[f"{namespace}/chat"] == ["n2"]
    cluster.api.patch("/api/v1/nodes/n2", {"metadata": {"labels": {"zone": None}}})


def test_scale_up_down_to_zero_and_back(cluster: Cluster, namespace: str) -> None:
    cluster.apply(namespace, "chat", ls())
    cluster.wait_condition(namespace, "chat", "Ready", "True")
    _scale(cluster.api, namespace, "chat", 2)
    cluster.wait_condition(namespace, "chat", "Ready", "True")
    eventually(lambda: len(cluster.endpoints(namespace, "chat")) == 2, SETTLE_S, "two addresses")
    _scale(cluster.api, namespace, "chat", 0)
    cluster.wait_condition(namespace, "chat", "Ready", "False", "Paused")
    assert cluster.endpoints(namespace, "chat") == []
    _scale(cluster.api, namespace, "chat", 1)
    cluster.wait_condition(namespace, "chat", "Ready", "True")


def test_pause_and_resume_keep_the_port(cluster: Cluster, namespace: str) -> None:
    cluster.apply(namespace, "chat", ls())
    cluster.wait_condition(namespace, "chat", "Ready", "True")
    port = cluster.service(namespace, "chat")["status"]["port"]
    cluster.apply(namespace, "chat", {"state": "Paused"})
    cluster.wait_condition(namespace, "chat", "Ready", "False", "Paused")
    eventually(
        lambda: f"{namespace}/chat" not in cluster.assignments(), SETTLE_S, "assignment withdrawn"
    )
    cluster.apply(namespace, "chat", {"state": "Running"})
    cluster.wait_condition(namespace, "chat", "Ready", "True")
    assert cluster.service(namespace, "chat")["status"]["port"] == port


def test_class_changes_at_run_time_on_the_same_engine(cluster: Cluster, namespace: str) -> None:
    cluster.apply(namespace, "chat", ls())
    cluster.wait_condition(namespace, "chat", "Ready", "True")
    (node,) = cluster.assignments()[f"{namespace}/chat"]
    engines = cluster.serving_node(node)["spec"]["engines"]
    cluster.apply(namespace, "chat", {"class": "BE", "slo": None})
    cluster.wait_condition(namespace, "chat", "Ready", "True")
    spec = cluster.serving_node(node)["spec"]
    assert [a["class"] for a in spec["assignments"]] == ["BE"]
    assert [e["key"] for e in spec["engines"]] == [e["key"] for e in engines]
    conditions = {c["type"] for c in cluster.service(namespace, "chat")["status"]["conditions"]}
    assert "SLOAttained" not in conditions
    assert "Throttled" in conditions


def test_model_change_gets_another_engine(cluster: Cluster, namespace: str) -> None:
    cluster.apply(namespace, "chat", ls())
    cluster.wait_condition(namespace, "chat", "Ready", "True")
    cluster.apply(namespace, "chat", {"model": {"uri": "file:///models/other"}})
    cluster.wait_condition(namespace, "chat", "Ready", "True")

    def moved() -> bool:
        nodes = cluster.assignments()[f"{namespace}/chat"]
        uris = [e["uri"] for n in nodes for e in cluster.serving_node(n)["spec"]["engines"]]
        return uris == ["file:///models/other"]

    eventually(moved, SETTLE_S, "the new model alone is served")


def test_class_and_quota_of_a_namespace(cluster: Cluster, namespace: str) -> None:
    path = f"/api/v1/namespaces/{namespace}"
    metadata = {"labels": {"omniserve.io/classes": "LS"}}
    cluster.api.patch(path, {"metadata": metadata})
    cluster.apply(namespace, "batch", be())
    cluster.wait_condition(namespace, "batch", "Accepted", "False", "ClassNotAllowed")
    quota = {"annotations": {"omniserve.io/max-replicas": "1"}}
    cluster.api.patch(path, {"metadata": {"labels": {"omniserve.io/classes": None}} | quota})
    cluster.wait_condition(namespace, "batch", "Ready", "True")
    cluster.apply(namespace, "chat", ls())
    cluster.wait_condition(namespace, "chat", "Scheduled", "False", "QuotaExceeded")


def test_keys_are_mirrored_for_the_agents_and_removed_again(
    cluster: Cluster, namespace: str
) -> None:
    secret = {"metadata": {"name": "keys"}, "stringData": {"alice": "key-of-alice"}}
    cluster.api.create(f"/api/v1/namespaces/{namespace}/secrets", secret)
    made = cluster.apply(namespace, "chat", ls(auth={"apiKeysSecretRef": {"name": "keys"}}))
    cluster.wait_condition(namespace, "chat", "Ready", "True")
    mirror = f"/api/v1/namespaces/{NAMESPACE}/secrets/svc-{made['metadata']['uid']}"
    data = cluster.api.get(mirror)["data"]
    assert base64.b64decode(data["alice"]) == b"key-of-alice"
    (node,) = cluster.assignments()[f"{namespace}/chat"]
    assignment = cluster.serving_node(node)["spec"]["assignments"][0]
    assert assignment["apiKeysSecret"] == f"svc-{made['metadata']['uid']}"
    cluster.api.delete(services_path(namespace, "chat"))
    eventually(lambda: cluster.api.find(mirror) is None, SETTLE_S, "mirrored secret removed")


def test_conflicting_edits_lose_nothing(cluster: Cluster, namespace: str) -> None:
    """Twenty writers change one object while the operator writes its status."""
    cluster.apply(namespace, "chat", ls())

    def edit(number: int) -> None:
        body = {"metadata": {"annotations": {f"edit-{number}": "done"}}}
        body["spec"] = {"priority": number, "placement": {"nodeSelector": {f"k{number}": "v"}}}
        cluster.api.patch(services_path(namespace, "chat"), body)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(edit, range(20)))
    found = cluster.service(namespace, "chat")
    assert len([a for a in found["metadata"]["annotations"] if a.startswith("edit-")]) == 20
    assert len(found["spec"]["placement"]["nodeSelector"]) == 20
    cluster.wait_condition(namespace, "chat", "Scheduled", "False", "NoMatchingNodes")
    assert cluster.service(namespace, "chat")["spec"] == found["spec"]
    cluster.apply(namespace, "chat", {"placement": None})
    cluster.wait_condition(namespace, "chat", "Ready", "True")
    (node,) = cluster.assignments()[f"{namespace}/chat"]
    assignment = cluster.serving_node(node)["spec"]["assignments"][0]
    assert assignment["priority"] == found["spec"]["priority"]
