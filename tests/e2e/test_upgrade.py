"""Chart upgrades under traffic: what restarts, in which order, and what does not. Fake agents."""

from __future__ import annotations

import pytest

from e2e.harness.cluster import Cluster, is_ready
from e2e.harness.install import values
from e2e.harness.specs import ls
from e2e.harness.traffic import Traffic
from e2e.harness.waiting import eventually

NODES = ("u1", "u2")
SETTLE_S = 120


@pytest.fixture(scope="module", autouse=True)
def nodes(cluster: Cluster) -> None:
    for name in NODES:
        cluster.add_node(name)
    cluster.ready("agent", len(NODES))


def _agents(cluster: Cluster) -> dict[str, str]:
    """Node to uid of its agent's pod."""
    return {p["spec"]["nodeName"]: p["metadata"]["uid"] for p in cluster.pods("agent")}


def test_upgrade_that_leaves_the_agents_template_alone_restarts_no_agent(
    cluster: Cluster, namespace: str
) -> None:
    cluster.apply(namespace, "chat", ls(replicas=2))
    cluster.wait_condition(namespace, "chat", "Ready", "True")
    before = _agents(cluster)
    operators = {p["metadata"]["uid"] for p in cluster.pods("operator")}
    changed = values()
    changed["operator"]["logLevel"] = "debug"
    with Traffic(cluster, namespace, "chat") as traffic:
        cluster.helm.install(changed)
        eventually(
            lambda: {p["metadata"]["uid"] for p in cluster.pods("operator")}.isdisjoint(operators),
            SETTLE_S,
            "a new operator",
        )
        cluster.ready("operator", 1)
        cluster.apply(namespace, "chat", {"priority": 1})
        cluster.wait_condition(namespace, "chat", "Ready", "True")
    assert _agents(cluster) == before
    assert traffic.answered > 0
    assert traffic.failures == []


def test_agents_upgrade_one_node_at_a_time_without_losing_a_request(
    cluster: Cluster, namespace: str
) -> None:
    cluster.apply(namespace, "chat", ls(replicas=2))
    cluster.wait_condition(namespace, "chat", "Ready", "True")
    before = _agents(cluster)
    changed = values(agent_env={"OMNISERVE_SLOTS": "32"})
    fewest = [2]

    def done() -> bool:
        ready = [p for p in cluster.pods("agent") if is_ready(p)]
        fewest[0] = min(fewest[0], len(ready))
        now = _agents(cluster)
        # Listed apart: a node whose old agent is gone since has none for a moment.
        replaced = all(now.get(node, before[node]) != before[node] for node in NODES)
        return len(ready) == 2 and replaced

    with Traffic(cluster, namespace, "chat") as traffic:
        cluster.helm.install(changed)
        eventually(done, SETTLE_S, "both agents replaced")
        cluster.wait_condition(namespace, "chat", "Ready", "True")
    assert fewest[0] >= 1, "never both at once"
    assert traffic.answered > 0
    assert traffic.failures == []
    drained = [n for n in NODES if cluster.serving_node(n)["spec"].get("drain")]
    assert drained == []
