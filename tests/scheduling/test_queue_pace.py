"""A full queue goes by what left it lately."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniserve_agent.scheduling.queue_pace import KEPT, QueuePace
from omniserve_agent.scheduling.retry import LEAST_RETRY_S, MOST_RETRY_S


def left_at(*times_s):
    """Of a queue that began to fill at 0 and is never empty."""
    pace = QueuePace()
    pace.came(0.0, waiting=0)
    for at_s in times_s:
        pace.left(at_s, waiting=1)
    return pace


@given(st.floats(1.0, 50.0), st.integers(1, 30), st.floats(0.0, 1.0))
def test_at_a_steady_pace_there_is_room_when_it_says_and_at_most_a_turn_earlier(every, count, part):
    pace, last_s = left_at(*((n + 1) * every for n in range(count))), count * every
    now_s = last_s + part * every
    promised_s = now_s + pace.room_s(now_s)
    assert last_s + every - 1e-6 <= promised_s <= now_s + every + 1e-6


def test_a_queue_that_stands_still_is_expected_to_stand_as_long_again():
    assert left_at(2.0, 4.0).room_s(14.0) == 10.0
    assert left_at(2.0, 4.0).room_s(1000.0) == MOST_RETRY_S


def test_what_is_long_past_counts_no_more():
    late = [500.0 + 2.0 * n for n in range(KEPT + 1)]
    assert left_at(100.0, 200.0, *late).room_s(late[-1]) == pytest.approx(2.0)


def test_time_in_which_nobody_waited_does_not_count():
    pace = left_at(2.0)
    pace.left(4.0, waiting=0)
    pace.came(104.0, waiting=0)
    pace.left(106.0, waiting=1)
    assert pace.room_s(106.0) == 2.0
    pace.came(109.0, waiting=0)  # those that waited were cancelled
    assert pace.room_s(109.0) == 2.0


def test_before_anything_has_left_it_is_the_shortest():
    assert QueuePace().room_s(50.0) == LEAST_RETRY_S
    assert left_at(0.0, 0.0).room_s(0.0) == LEAST_RETRY_S
