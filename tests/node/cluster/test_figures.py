"""Figures of LS and BE services from tallies and counters."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniserve_agent.engine.messages import Stats
from omniserve_agent.http.attainment import Observation, Outcome
from omniserve_agent.http.tally import Tally
from omniserve_agent.node.cluster.figures import (
    BeFacts,
    YieldShare,
    be_window,
    error_budget,
    ls_window,
    rfc3339,
    tokens_left,
)
from omniserve_agent.serving import Slo

NOW = datetime(2026, 11, 24, 21, 0, 0, 999_000, tzinfo=UTC)
SLO = Slo(ttft_ms=100, tpot_ms=10)


def seen(ttft_ms, tpot_ms=None, outcome=Outcome.FINISHED, ended_s=10.0):
    first_s = None if ttft_ms is None else 1.0 + ttft_ms / 1e3
    tokens = 1 if tpot_ms is None else 11
    last_s = first_s if tpot_ms is None else first_s + tpot_ms * 10 / 1e3
    return Observation(outcome, 1.0, ended_s, first_s, last_s, 0 if ttft_ms is None else tokens)


def test_an_ls_window_counts_what_was_missed():
    tally = Tally(0.0)
    for observation in (
        seen(1000, 100, ended_s=-60.0),  # before the window
        seen(20, outcome=Outcome.CANCELLED, ended_s=1.021),
        seen(50, 5),
        seen(150, 5),
        seen(50, 15),
        seen(150, 15),
        seen(None, outcome=Outcome.REFUSED),
        seen(None, outcome=Outcome.FAILED),
        seen(None, outcome=Outcome.CALLER_ERROR),
        seen(120, outcome=Outcome.CANCELLED),
    ):
        tally.add(observation, SLO)
    burn = tally.error_budget_burn(replace(SLO, min_samples=7, window_s=30), 12.0)
    window = ls_window(*tally.window(12.0, 30.0), burn)
    assert window.model_dump(exclude={"ttft_ms_p50", "ttft_ms_p99"}) == {
        "offered": 7,
        "finished": 4,
        "attained": 1,
        "refused": 1,
        "failed": 1,
        "ttft_missed": 3,
        "tpot_missed": 2,
        "error_budget_burn_percent": 8571,  # 6 of 7 where 1 % may
        "tpot_ms_p50": 5,
        "tpot_ms_p99": 15,
    }
    assert (window.ttft_ms_p50, window.ttft_ms_p99) == (50, 150)


def test_a_window_without_requests_has_no_times():
    window = ls_window(*Tally(0.0).window(0.0, 30.0), 0.0)
    assert window.offered == 0
    assert window.ttft_ms_p50 is None


def test_an_engine_tells_how_its_error_budgets_control_it():
    stats = Stats(
        services={},
        prediction_margin=1.125,
        margin_quantile=0.985,
        margin_widening=1.25,
        error_budget_burn=2.5,
        error_budget_slack_share=0.05,
    )
    assert error_budget(stats).model_dump(by_alias=True) == {
        "burnPercent": 250,
        "slackPercent": 5,
        "marginPercent": 112,
        "marginQuantilePercent": 98,
        "marginWideningPercent": 125,
    }


def test_where_nothing_is_predicted_there_is_no_error_budget_to_tell_of():
    assert error_budget(None) is None
    assert error_budget(Stats(services={})) is None


def facts(**fields):
    defaults = {
        "tokens_per_minute": 119.6,
        "queued": 2,
        "running": 1,
        "throttled_percent": 0,
        "neighbours": ("team/chat",),
        "tokens_left": 240,
    }
    return BeFacts(**{**defaults, **fields})


def test_a_be_window_predicts_when_all_is_done():
    window = be_window(facts(tokens_per_minute=120), NOW)
    assert window.predicted_finish == "2026-11-24T21:02:00Z"
    assert (window.tokens_per_minute, window.queued, window.running) == (120, 2, 1)


@pytest.mark.parametrize("fields", [{"tokens_left": 0}, {"tokens_per_minute": 0}])
def test_no_finish_without_work_or_pace(fields):
    assert be_window(facts(**fields), NOW).predicted_finish is None


def test_a_finish_beyond_all_measure_is_a_year_away():
    far = be_window(facts(tokens_per_minute=1e-9, tokens_left=10**12), NOW)
    assert far.predicted_finish == "2027-11-24T21:00:00Z"


def test_who_throttles_is_named_only_while_it_does():
    assert be_window(facts(), NOW).throttled_by == []
    many = tuple(f"team/{number}" for number in range(20))
    throttled = be_window(facts(throttled_percent=30, neighbours=many), NOW)
    assert throttled.throttled_by == list(many[:16])


def test_the_yield_share_is_of_iterations_while_be_had_work():
    share = YieldShare()
    share.add(0.0, 100, 100, be_work=True)  # where counting begins
    share.add(1.0, 200, 150, be_work=True)  # 50 of 100 held LS rows
    share.add(2.0, 900, 150, be_work=False)  # nobody yields
    share.add(3.0, 1000, 250, be_work=True)  # none of 100
    assert share.percent(4.0) == 25
    assert share.percent(61.5) == 0
    assert share.percent(200.0) == 0


def test_a_restarted_engine_begins_its_counters_anew():
    share = YieldShare()
    share.add(0.0, 100, 0, be_work=True)
    share.add(1.0, 10, 0, be_work=True)
    assert share.percent(1.0) == 0
    share.add(2.0, 20, 5, be_work=True)
    assert share.percent(2.0) == 50


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50), st.booleans()), max_size=40),
    st.floats(0, 100),
)
def test_the_yield_share_is_a_percentage(steps, now_s):
    share, iterations, sweeps = YieldShare(), 0, 0
    for index, (done, swept, work) in enumerate(steps):
        iterations, sweeps = iterations + done, sweeps + min(done, swept)
        share.add(float(index), iterations, sweeps, be_work=work)
    assert 0 <= share.percent(now_s) <= 100


@pytest.mark.parametrize(
    ("requests", "mean", "left"),
    [
        ([(0, 100), (60, 100)], None, 140),
        ([(0, 100), (60, 100)], 50.0, 51),
        ([(99, 100)], 50.0, 1),
        ([(100, 100)], 50.0, 0),
        ([], 50.0, 0),
    ],
)
def test_tokens_left(requests, mean, left):
    assert tokens_left(requests, mean) == left


def test_times_are_utc_and_whole():
    assert rfc3339(NOW) == "2026-11-24T21:00:00Z"
