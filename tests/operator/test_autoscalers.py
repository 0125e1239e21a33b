"""Marks that keep autoscalers away from Nodes in use."""

import pytest

from omniserve_operator.autoscalers import MARKS, OURS, change
from omniserve_operator.settings import Settings
from support.fake_cluster import RELEASE, Cluster

CLUSTER_AUTOSCALER, KARPENTER = MARKS
BOTH = " ".join(sorted(MARKS))


@pytest.mark.parametrize(
    ("annotations", "in_use", "wanted"),
    [
        ({}, False, None),
        ({}, True, MARKS | {OURS: BOTH}),
        (MARKS | {OURS: BOTH}, True, None),
        (MARKS | {OURS: BOTH}, False, dict.fromkeys([*MARKS, OURS])),
        # Somebody else's mark is kept, whatever its value.
        ({KARPENTER: "false"}, True, {CLUSTER_AUTOSCALER: "true", OURS: CLUSTER_AUTOSCALER}),
        (MARKS, True, None),
        (MARKS, False, None),
        (
            MARKS | {OURS: CLUSTER_AUTOSCALER},
            False,
            {CLUSTER_AUTOSCALER: None, OURS: None},
        ),
        # One of ours was taken away by hand: it is set again.
        ({KARPENTER: "true", OURS: BOTH}, True, {CLUSTER_AUTOSCALER: "true", OURS: BOTH}),
        # Only marks that this knows are ever taken away.
        ({OURS: "example.com/other"}, False, {OURS: None}),
    ],
)
def test_change(annotations, in_use, wanted):
    assert change(annotations, in_use) == wanted


def _annotations(cluster, node):
    return cluster.api.objects[f"/api/v1/nodes/{node}"]["metadata"].get("annotations") or {}


def test_nodes_in_use_are_marked_and_let_go():
    cluster = Cluster(["n1", "n2"], settings=Settings(RELEASE, protect_nodes=True))
    cluster.apply("chat")
    cluster.settle()
    assert _annotations(cluster, "n1") == MARKS | {OURS: BOTH}
    assert _annotations(cluster, "n2") == {}
    cluster.apply("chat", replicas=0)
    cluster.settle()
    assert _annotations(cluster, "n1") == {}


def test_nodes_are_left_alone_unless_asked_for():
    cluster = Cluster(["n1"])
    cluster.apply("chat")
    cluster.settle()
    assert _annotations(cluster, "n1") == {}
