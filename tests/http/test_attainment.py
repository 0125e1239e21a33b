"""Attainment and tallies, in tables."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniserve_agent.http.attainment import Observation, Outcome, is_attained, is_offered
from omniserve_agent.http.tally import MAX_SAMPLES, Tally, nearest_rank
from omniserve_agent.serving import Slo

SLO = Slo(ttft_ms=500, tpot_ms=100)
FINISHED, CANCELLED = Outcome.FINISHED, Outcome.CANCELLED


def seen(outcome, *, first=None, last=None, tokens=0, ended=1.0):
    """Times in seconds after arrival."""
    at = 100.0
    return Observation(
        outcome,
        at,
        at + ended,
        None if first is None else at + first,
        None if last is None else at + last,
        tokens,
    )


@pytest.mark.parametrize(
    ("observation", "offered", "attained"),
    [
        (seen(FINISHED, first=0.25, last=1.25, tokens=11), True, True),
        (seen(FINISHED, first=0.5, last=1.5, tokens=11), True, True),  # exactly both limits
        (seen(FINISHED, first=0.625, last=1.0, tokens=11), True, False),  # TTFT
        (seen(FINISHED, first=0.25, last=1.5, tokens=11), True, False),  # TPOT 125 ms
        (seen(FINISHED, first=0.25, last=0.25, tokens=1), True, True),  # one token: TTFT alone
        (seen(FINISHED, first=0.75, last=0.75, tokens=1), True, False),
        (seen(FINISHED, ended=0.25), True, True),  # no token at all: judged by its end
        (seen(FINISHED, ended=0.75), True, False),
        (seen(Outcome.REFUSED, ended=0.001), True, False),
        (seen(Outcome.FAILED, first=0.1, last=0.2, tokens=2), True, False),
        (seen(Outcome.CALLER_ERROR), False, False),
        (seen(Outcome.PAUSED), False, False),
        (seen(CANCELLED, ended=0.4), False, False),  # no deadline yet
        (seen(CANCELLED, ended=0.6), True, False),  # first token overdue
        (seen(CANCELLED, first=0.6, last=0.6, tokens=1, ended=0.61), True, False),  # it was late
        (seen(CANCELLED, first=0.25, last=0.5, tokens=5, ended=0.5), False, False),
        # token 5 was due 0.25 + 5 x 0.1 = 0.75 s after arrival
        (seen(CANCELLED, first=0.25, last=0.5, tokens=5, ended=0.74), False, False),
        (seen(CANCELLED, first=0.25, last=0.5, tokens=5, ended=0.76), True, False),
    ],
)
def test_table(observation, offered, attained):
    assert (is_offered(observation, SLO), is_attained(observation, SLO)) == (offered, attained)


@pytest.mark.parametrize(
    ("outcome", "offered"),
    [
        (FINISHED, True),
        (Outcome.REFUSED, True),
        (Outcome.FAILED, True),
        (CANCELLED, False),
        (Outcome.CALLER_ERROR, False),
    ],
)
def test_without_an_slo_nothing_attains(outcome, offered):
    observation = seen(outcome, first=0.1, last=0.2, tokens=2, ended=9)
    assert (is_offered(observation, None), is_attained(observation, None)) == (offered, False)


def test_times():
    observation = seen(FINISHED, first=0.25, last=1.25, tokens=5)
    assert (observation.ttft_ms, observation.tpot_ms) == (250, 250)
    assert seen(FINISHED, first=0.25, last=0.25, tokens=1).tpot_ms is None
    assert seen(FINISHED).ttft_ms is None


@given(st.sampled_from(Outcome), st.floats(0, 2), st.floats(0, 2), st.integers(0, 20))
def test_what_attains_was_offered(outcome, first, length, tokens):
    observation = seen(outcome, first=first, last=first + length, tokens=tokens, ended=5)
    assert is_offered(observation, SLO) >= is_attained(observation, SLO)


@pytest.mark.parametrize(
    ("values", "percent", "rank"),
    [([], 50, None), ([3], 99, 3), ([1, 2, 3, 4], 50, 2), (range(1, 101), 99, 99), ([2, 1], 99, 2)],
)
def test_nearest_rank(values, percent, rank):
    assert nearest_rank(values, percent) == rank


def test_window_forgets_and_total_does_not():
    tally = Tally(100.0)
    tally.add(seen(FINISHED, first=0.1, last=0.15, tokens=2, ended=1), SLO)
    tally.add(seen(FINISHED, first=0.3, last=0.54, tokens=4, ended=8), SLO)
    tally.add(seen(Outcome.REFUSED, ended=9), SLO)
    counts, times = tally.window(110.0, 300)
    assert (counts.offered, counts.attained, counts.refused, counts.finished) == (3, 2, 1, 2)
    assert times.ttft_ms_p50 == pytest.approx(100)
    assert times.ttft_ms_p99 == pytest.approx(300)
    assert times.tpot_ms_p99 == pytest.approx(80)
    counts, times = tally.window(110.0, 5)
    assert (counts.offered, counts.attained, counts.finished) == (2, 1, 1)
    assert times.ttft_ms_p50 == pytest.approx(300)
    counts, times = tally.window(500.0, 5)
    assert (counts.offered, times.tpot_ms_p50) == (0, None)
    assert tally.total.offered == 3


def test_memory_is_bounded():
    tally = Tally(0.0)
    for _ in range(MAX_SAMPLES + 10):
        tally.add(seen(Outcome.REFUSED), SLO)
    assert tally.window(101.0, 300)[0].offered == MAX_SAMPLES
    assert tally.total.offered == MAX_SAMPLES + 10


def test_token_rate():
    tally = Tally(100.0)
    assert tally.tokens_per_minute(100.0) == 0
    for second in range(10):
        tally.add_tokens(5, 100.0 + second)
        tally.add_tokens(1, 100.5 + second)
    assert tally.tokens_per_minute(110.0) == 60 * 60 / 10  # 60 tokens in ten seconds
    assert tally.tokens_per_minute(165.0) == 5 * 6 - 6  # those of the last minute only
    assert tally.tokens_per_minute(1000.0) == 0
    assert tally.output_tokens == 60
