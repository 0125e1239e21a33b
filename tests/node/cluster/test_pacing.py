"""When a status is written."""

import pytest

from omniserve_agent.node.cluster.pacing import Pacing


@pytest.fixture
def pacing():
    return Pacing(draw=lambda: 0.5)


def test_changes_are_written_at_once_and_figures_after_a_while(pacing):
    assert pacing.due(0.0, "a")
    pacing.written(0.0, "a")
    assert not pacing.due(16.4, "a")
    assert pacing.due(0.1, "b")
    assert pacing.due(16.5, "a")


def test_after_a_failure_it_waits_longer_and_longer(pacing):
    pacing.written(0.0, "a")
    waits = []
    now_s = 100.0
    for _ in range(8):
        pacing.failed(now_s)
        wait_s = next(w / 100 for w in range(1, 10_000) if pacing.due(now_s + w / 100, "a"))
        waits.append(wait_s)
        now_s += wait_s
    assert waits == [0.75, 1.5, 3.0, 6.0, 12.0, 22.5, 22.5, 22.5]


def test_when_the_server_is_back_nothing_is_waited_for(pacing):
    pacing.written(0.0, "a")
    pacing.failed(1.0)
    pacing.hurry()
    assert pacing.due(1.0, "a")


def test_a_success_ends_the_waits(pacing):
    pacing.failed(0.0)
    pacing.failed(0.0)
    pacing.written(5.0, "a")
    assert pacing.due(5.1, "b")
