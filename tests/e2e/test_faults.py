"""What breaks in a cluster: operators killed and doubled, nodes and agents lost. Fake agents."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import pytest

from e2e.harness.api import Object
from e2e.harness.cluster import Cluster
from e2e.harness.definitions import nodes_path, services_path
from e2e.harness.install import MAINTENANCE, NAMESPACE
from e2e.harness.specs import be, ls
from e2e.harness.waiting import eventually

NODES = ("f1", "f2", "f3", "f4")  # room for two replicas of each of two models, always
SETTLE_S = 90
CHANGES = 50
KILLS = 4  # the dead one's Lease runs out first: 15 s each
LEASE = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/omniserve-operator"
DEPLOYMENT = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/omniserve-operator"


@pytest.fixture(scope="module", autouse=True)
def nodes(cluster: Cluster) -> None:
    for name in NODES:
        cluster.add_node(name)
    cluster.ready("agent", len(NODES))


@pytest.fixture(autouse=True)
def free_again(cluster: Cluster, namespace: str) -> Iterator[None]:
    yield
    for service in cluster.api.items(services_path(namespace)):
        cluster.api.delete(services_path(namespace, service["metadata"]["name"]))
    eventually(lambda: not cluster.assignments(), SETTLE_S, "assignments withdrawn")


def _kill_operator(cluster: Cluster) -> None:
    for pod in cluster.pods("operator"):
        for container in cluster.worker(pod).containers:
            container.kill()


def _lease_holder(cluster: Cluster) -> str:
    return cluster.api.get(LEASE)["spec"].get("holderIdentity") or ""


def _change(cluster: Cluster, namespace: str, choices: random.Random) -> None:
    """One random edit of one of six services of two models."""
    name = f"s{choices.randrange(6)}"
    model = f"file:///models/{'ab'[int(name[1:]) % 2]}"
    kind = choices.choice(("ls", "be", "replicas", "pause", "delete"))
    if kind == "delete":
        cluster.api.delete(services_path(namespace, name))
        return
    spec = be(model) | {"slo": None} if kind == "be" else ls(model)
    spec["replicas"] = choices.randint(0, 2) if kind == "replicas" else 1
    spec["state"] = "Paused" if kind == "pause" else "Running"
    cluster.apply(namespace, name, spec)


def _picture(cluster: Cluster, namespace: str) -> Object:
    """What the owners wanted and what nodes and statuses say, without names of nodes."""
    services = cluster.api.items(services_path(namespace))
    places = cluster.assignments()
    picture: Object = {}
    for service in services:
        meta, status = service["metadata"], service.get("status", {})
        conditions = {c["type"]: c for c in status.get("conditions", [])}
        assert status.get("observedGeneration") == meta["generation"], meta["name"]
        told = {k: (c["status"], c["reason"]) for k, c in conditions.items()}
        told.pop("SLOAttained", None)
        told.pop("Throttled", None)
        replicas = len(places.get(f"{namespace}/{meta['name']}", []))
        assert told["Progressing"][0] == "False", meta["name"]
        picture[meta["name"]] = (replicas, told)
    known = {f"{namespace}/{name}" for name in picture}
    assert not [key for key in places if key not in known], "assignments of deleted services"
    return picture


def test_operator_killed_at_random_points_ends_in_the_same_state(
    cluster: Cluster, namespace: str
) -> None:
    choices = random.Random(20261124)
    kills = set(choices.sample(range(CHANGES), KILLS))
    for number in range(CHANGES):
        _change(cluster, namespace, choices)
        if number in kills:
            holder = _lease_holder(cluster)
            time.sleep(choices.uniform(0, 0.5))  # somewhere in what the changes set going
            _kill_operator(cluster)
            eventually(
                lambda old=holder: _lease_holder(cluster) not in ("", old),
                SETTLE_S,
                "the next operator holds the Lease",
            )
    disturbed = eventually(lambda: _picture(cluster, namespace), SETTLE_S, "settled after kills")
    ports = {s["metadata"]["name"]: s["status"].get("port") for s in _services(cluster, namespace)}
    assert len(set(ports.values())) == len(ports), "ports are unique"

    # The same objects seen for the first time by an operator that nobody disturbs.
    specs = {s["metadata"]["name"]: s["spec"] for s in _services(cluster, namespace)}
    for name in specs:
        cluster.api.delete(services_path(namespace, name))
    eventually(lambda: not cluster.assignments(), SETTLE_S, "assignments withdrawn")
    for name, spec in specs.items():
        cluster.apply(namespace, name, spec)
    eventually(
        lambda: _picture(cluster, namespace) == disturbed, SETTLE_S, "the same state undisturbed"
    )


def _services(cluster: Cluster, namespace: str) -> list[Object]:
    return cluster.api.items(services_path(namespace))


def test_of_two_operators_one_writes(cluster: Cluster, namespace: str) -> None:
    cluster.api.patch(DEPLOYMENT, {"spec": {"replicas": 2}})
    try:
        eventually(lambda: len(cluster.pods("operator")) == 2, SETTLE_S, "two operator pods")
        eventually(
            lambda: len([w for w in cluster.pods("operator") if _runs(cluster, w)]) == 2,
            SETTLE_S,
            "both run",
        )
        holder = cluster.api.get(LEASE)["spec"]["holderIdentity"]
        for number in range(5):
            cluster.apply(namespace, f"c{number}", ls())
        for number in range(5):
            cluster.wait_condition(namespace, f"c{number}", "Ready", "True")
        assert cluster.api.get(LEASE)["spec"]["holderIdentity"] == holder
        names = [f"c{number}" for number in range(5)]
        ready_events = [
            e
            for n in names
            for e in cluster.events(namespace, n)
            if e["message"].startswith("Ready is")
        ]
        firsts = [(e["involvedObject"]["name"], e["reason"]) for e in ready_events]
        assert len(firsts) == len(set(firsts)), "no transition was told twice"
    finally:
        cluster.api.patch(DEPLOYMENT, {"spec": {"replicas": 1}})
        cluster.ready("operator", 1)


def _runs(cluster: Cluster, pod: Object) -> bool:
    try:
        return any(c.processes() for c in cluster.worker(pod).containers)
    except KeyError:
        return False


@pytest.mark.parametrize(
    ("leave", "back"),
    [
        ({"unschedulable": True}, {"unschedulable": None}),
        ({"taints": [{"key": MAINTENANCE, "effect": "NoExecute"}]}, {"taints": None}),
    ],
    ids=["cordon", "NoExecute"],
)
def test_a_node_that_is_to_be_left_is_left_replacement_first(
    cluster: Cluster, namespace: str, leave: Object, back: Object
) -> None:
    cluster.apply(namespace, "chat", ls())
    cluster.wait_condition(namespace, "chat", "Ready", "True")
    (node,) = cluster.assignments()[f"{namespace}/chat"]
    cluster.api.patch(f"/api/v1/nodes/{node}", {"spec": leave})

    def moved() -> bool:
        assert cluster.endpoints(namespace, "chat"), "an address at every moment"
        return node not in cluster.assignments().get(f"{namespace}/chat", [node])

    eventually_without_excuses(moved)
    cluster.wait_condition(namespace, "chat", "Ready", "True")
    cluster.api.patch(f"/api/v1/nodes/{node}", {"spec": back})


def eventually_without_excuses(check: object) -> None:
    """Like `eventually`, but an assertion that fails once has failed."""
    broken: list[AssertionError] = []

    def once() -> bool:
        try:
            return bool(check())  # type: ignore[operator]
        except AssertionError as error:
            broken.append(error)
            return True

    eventually(once, SETTLE_S, "the move is complete")
    if broken:
        raise broken[0]


def test_deleted_node_loses_its_services_and_gets_work_again_when_it_returns(
    cluster: Cluster, namespace: str
) -> None:
    for number, _ in enumerate(NODES):
        cluster.apply(namespace, f"m{number}", ls(f"file:///models/m{number}"))
    for number, _ in enumerate(NODES):
        cluster.wait_condition(namespace, f"m{number}", "Ready", "True")
    places = cluster.assignments()
    (victim,) = [key for key, nodes in places.items() if nodes == ["f3"]]
    name = victim.split("/")[1]
    uid = cluster.serving_node("f3")["metadata"]["uid"]
    cluster.remove_node("f3")
    cluster.wait_condition(namespace, name, "Ready", "False")
    cluster.wait_condition(namespace, name, "Scheduled", "False", "InsufficientCapacity")
    eventually(
        lambda: cluster.api.find(nodes_path("f3")) is None, SETTLE_S, "its ServingNode is gone"
    )
    assert cluster.endpoints(namespace, name) == []
    cluster.add_node("f3")
    cluster.wait_condition(namespace, name, "Ready", "True")
    assert cluster.serving_node("f3")["metadata"]["uid"] != uid


def test_killed_agent_recovers_and_conditions_tell_the_truth(
    cluster: Cluster, namespace: str
) -> None:
    cluster.apply(namespace, "chat", ls(replicas=3))
    cluster.wait_condition(namespace, "chat", "Ready", "True")
    pod = cluster.agent_pod("f1")
    address = pod["status"]["podIP"]
    for container in cluster.worker(pod).containers:
        container.kill()
    cluster.ready("agent", len(NODES))
    cluster.wait_condition(namespace, "chat", "Ready", "True")
    cluster.api.delete(f"/api/v1/namespaces/{NAMESPACE}/pods/{pod['metadata']['name']}")
    eventually(
        lambda: address not in {a for a, _ in cluster.endpoints(namespace, "chat")},
        SETTLE_S,
        "a dead agent's address is taken out",
    )
    cluster.ready("agent", len(NODES))
    cluster.wait_condition(namespace, "chat", "Ready", "True")
    eventually(lambda: len(cluster.endpoints(namespace, "chat")) == 3, SETTLE_S, "all answer again")
