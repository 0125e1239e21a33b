"""Restart waits and watchdog, as tables."""

import pytest

from omniserve_agent.node.backoff import Backoff, RestartPolicy, Starts, Watchdog


def test_waits_grow_to_a_limit_and_end():
    backoff = Backoff(RestartPolicy(first_s=1, factor=2, longest_s=5, max_failures=5))
    assert [backoff.after_life(0) for _ in range(6)] == [1, 2, 4, 5, 5, None]


def test_a_stable_life_starts_over():
    backoff = Backoff(RestartPolicy(first_s=1, stable_s=60, max_failures=3))
    lives = [0, 59.9, 60, 1, 1, 1]
    assert [backoff.after_life(life) for life in lives] == [1, 2, 1, 2, 4, None]


@pytest.mark.parametrize(
    ("errors", "hopeless"),
    [
        (["a", "a"], [False, True]),
        (["a", "b", "a"], [False, False, False]),
        ([None, None, None], [False, False, False]),  # nobody knows whether they are alike
        (["a", None, "a"], [False, False, False]),
    ],
)
def test_starts_that_fail_alike_are_hopeless(errors, hopeless):
    starts = Starts()
    assert [starts.fail_alike(error) for error in errors] == hopeless


@pytest.mark.parametrize(
    ("silent_s", "ready", "overdue"),
    [(29, True, False), (31, True, True), (31, False, False), (601, False, True)],
)
def test_watchdog(silent_s, ready, overdue):
    assert Watchdog(heartbeat_s=30, start_s=600).overdue(silent_s, ready=ready) is overdue
