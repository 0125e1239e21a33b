"""SLOAttained and Throttled from what agents measure: figures, hysteresis, Events, staleness.

The real measurement under a real load is in test_engine.py; here (fake) agents are told the
figures, so that every flip has one known cause.
"""

from __future__ import annotations

from typing import Any

import pytest

from e2e.harness.api import Object
from e2e.harness.cluster import SETTLE_S, Cluster
from e2e.harness.specs import be, ls
from e2e.harness.waiting import eventually, steadily

NODE = "measured"
FLIP_S = 60  # two windows of 10 s and the agents' reports
STALE_S = 120

FIGURES = {"ttftMsP50": 100, "ttftMsP99": 200, "tpotMsP50": 20, "tpotMsP99": 40}


@pytest.fixture(scope="module", autouse=True)
def node(cluster: Cluster) -> None:
    cluster.add_node(NODE)
    cluster.ready("agent", 1)


@pytest.fixture
def chat(cluster: Cluster, namespace: str) -> str:
    """An LS service, Ready, without traffic yet."""
    cluster.apply(namespace, "chat", ls())
    cluster.wait_condition(namespace, "chat", "Ready", "True")
    return "chat"


def _measured(cluster: Cluster, namespace: str, **window: Any) -> None:
    """The agent's window of `chat` from now on."""
    cluster.pretend(NODE, services={f"{namespace}/chat": {"ls": window}})


def _good(offered: int = 100) -> Object:
    return {"offered": offered, "finished": offered, "attained": offered, **FIGURES}


def _late_tokens() -> Object:
    return _good() | {"attained": 40, "tpotMissed": 60, "tpotMsP99": 900}


def _attained(cluster: Cluster, namespace: str, status: str, reason: str) -> Object:
    return cluster.wait_condition(namespace, "chat", "SLOAttained", status, reason, FLIP_S)


def _flips(cluster: Cluster, namespace: str) -> list[str]:
    """Events about SLOAttained, oldest first, as their messages."""
    events = cluster.events(namespace, "chat")
    events.sort(key=lambda e: e["metadata"]["creationTimestamp"])
    return [e["reason"] for e in events if "SLOAttained" in e["message"]]


def test_life_cycle_with_figures_hysteresis_and_one_event_each(
    cluster: Cluster, namespace: str, chat: str
) -> None:
    _attained(cluster, namespace, "Unknown", "NoTraffic")
    _measured(cluster, namespace, **_good(offered=3))
    _attained(cluster, namespace, "Unknown", "InsufficientSamples")

    _measured(cluster, namespace, **_good())
    met = _attained(cluster, namespace, "True", "Attained")
    assert "100" in met["message"]

    _measured(cluster, namespace, **_late_tokens())
    missed = _attained(cluster, namespace, "False", "TPOTMissed")
    assert "900" in missed["message"], "p99 is told"
    assert "40" in missed["message"], "attained / offered is told"
    assert NODE in missed["message"], "the worst node is named"
    assert cluster.condition(namespace, chat, "Ready")["status"] == "True", "outside Ready"

    _measured(cluster, namespace, **_good())
    _attained(cluster, namespace, "True", "Attained")
    eventually(  # events are written after the status
        lambda: len(_flips(cluster, namespace)) >= 3, SETTLE_S, "three flips told"
    )
    flips = _flips(cluster, namespace)
    for reason, count in (("TPOTMissed", 1), ("Attained", 2)):
        assert flips.count(reason) == count, flips


def test_one_bad_report_does_not_flip_it(cluster: Cluster, namespace: str, chat: str) -> None:
    _measured(cluster, namespace, **_good())
    _attained(cluster, namespace, "True", "Attained")
    _measured(cluster, namespace, **_late_tokens())
    steadily(
        lambda: cluster.condition(namespace, chat, "SLOAttained")["status"] == "True",
        2,
        "still True before two windows have passed",
    )
    _measured(cluster, namespace, **_good())
    steadily(
        lambda: cluster.condition(namespace, chat, "SLOAttained")["status"] == "True",
        25,
        "the short dip was no flip",
    )


@pytest.mark.parametrize(
    ("window", "reason"),
    [
        ({"attained": 30, "ttftMissed": 70, "ttftMsP99": 9000}, "TTFTMissed"),
        ({"attained": 30, "ttftMissed": 70, "tpotMissed": 70}, "TTFTAndTPOTMissed"),
        ({"attained": 40, "finished": 40, "refused": 60}, "RefusedForCapacity"),
    ],
)
def test_reasons(cluster: Cluster, namespace: str, chat: str, window: Object, reason: str) -> None:
    _measured(cluster, namespace, **(_good() | window))
    _attained(cluster, namespace, "False", reason)


def test_silent_agent_makes_it_stale_and_a_word_from_it_mends_that(
    cluster: Cluster, namespace: str, chat: str
) -> None:
    _measured(cluster, namespace, **_good())
    _attained(cluster, namespace, "True", "Attained")
    cluster.pretend(NODE, silent=True)
    cluster.wait_condition(namespace, chat, "SLOAttained", "Unknown", "MeasurementStale", STALE_S)
    cluster.wait_condition(namespace, chat, "NodesReporting", "False", "HeartbeatStale")
    _measured(cluster, namespace, **_good())
    _attained(cluster, namespace, "True", "Attained")
    cluster.wait_condition(namespace, chat, "NodesReporting", "True", "Reporting")


def test_throttled_names_the_ls_service_it_yields_to(
    cluster: Cluster, namespace: str, chat: str
) -> None:
    cluster.apply(namespace, "batch", be())
    cluster.wait_condition(namespace, "batch", "Ready", "True")
    held = {"be": {"throttledPercent": 80, "throttledBy": [f"{namespace}/{chat}"], "queued": 3}}
    cluster.pretend(NODE, services={f"{namespace}/batch": held})
    found = cluster.wait_condition(namespace, "batch", "Throttled", "True", "YieldingToLS", FLIP_S)
    assert f"{namespace}/{chat}" in found["message"]
    cluster.pretend(NODE)
    cluster.wait_condition(namespace, "batch", "Throttled", "False", "FullSpeed", FLIP_S)


def test_slo_column_shows_measured_and_objective(
    cluster: Cluster, namespace: str, chat: str
) -> None:
    _measured(cluster, namespace, **_late_tokens())
    _attained(cluster, namespace, "False", "TPOTMissed")
    path = f"/apis/omniserve.io/v1alpha1/namespaces/{namespace}/llmservices"

    def shown() -> bool:
        row = {key.upper(): value for key, value in cluster.api.table(path)[0].items()}
        assert "40" in str(row["SLO"]), row
        assert "99" in str(row["SLO"]), row
        return True

    eventually(shown, FLIP_S, "SLO column")
