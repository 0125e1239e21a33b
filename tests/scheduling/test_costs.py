"""Prices are the latency model's own; what others may take; which joins to expect."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniserve_agent.scheduling.budget import Choice
from omniserve_agent.scheduling.costs import Costs, Load
from omniserve_agent.scheduling.deadlines import Deadlines
from omniserve_agent.scheduling.error_budgets import ErrorBudgets
from omniserve_agent.scheduling.in_flight import InFlight, steps
from omniserve_agent.scheduling.jobs import Job, ServiceClass
from omniserve_agent.scheduling.latency import Correction, Curve, LatencyModel
from omniserve_agent.scheduling.slack import decode_slack, least_laxity

LAYERS = 6
MODEL = LatencyModel(
    LAYERS,
    Curve((1, 16, 17, 32), (1e-3, 1e-3, 2e-3, 2e-3)),
    Curve((1, 8), (1e-4, 8e-4)),
    fixed=5e-4,
    key=1e-8,
    pair=2e-8,
    join=3e-6,
)
COSTS = Costs(MODEL, Correction(), ErrorBudgets())
COUNTS = st.integers(0, 200)


@given(
    COUNTS,
    COUNTS,
    COUNTS,
    COUNTS,
    st.integers(0, LAYERS),
    st.integers(0, 20),
    st.floats(0, 1e6),
    st.sampled_from([0.0, 1e-10]),
)
def test_a_load_costs_what_the_latency_model_says_of_its_work(
    rows, logits, keys, pairs, at, n, step_bytes, host
):
    model = replace(MODEL, host=host)
    load = Load(rows, logits, keys, pairs).joined(((0, LAYERS - at), (n, at)), step_bytes)
    work, costs = load.work(), Costs(model, Correction(), ErrorBudgets())
    assert work.host_kv_bytes == pytest.approx(n * at * step_bytes)
    assert costs.predicted(load) == pytest.approx(model.predict(work))
    further = load.plus(3, 1, 40, 5)
    assert costs.predicted(further) == pytest.approx(model.predict(further.work()))


def test_rows_beyond_the_table_are_priced_by_the_curve():
    assert COSTS.dense(100_000) == MODEL.dense.at(100_000)


def seconds_from(rows):
    """What further rows beside `rows` take, 16 of them a step."""
    return lambda more: COSTS.predicted(Load(rows=rows + more))


def test_a_step_is_taken_for_many_rows_and_not_for_few():
    """Up to 16 rows take 1 ms a layer, up to 32 take 2 ms."""
    assert COSTS.edges == (16,)
    assert COSTS.worthwhile(10, 8, seconds_from(10)) == 6  # 18 rows in 2 ms are less than 16 in 1
    assert COSTS.worthwhile(10, 22, seconds_from(10)) == 22  # `fixed` is paid once for 32
    assert COSTS.worthwhile(10, 6, seconds_from(10)) == 6  # none is crossed
    assert COSTS.worthwhile(16, 4, seconds_from(16)) == 4  # LS itself begins the step


def test_rows_that_others_fill_the_step_of_go_on():
    def whole(rows):
        return Choice(rows, 32.0, COSTS.predicted(Load(rows=32)))

    assert COSTS.worthwhile(10, 8, seconds_from(10), whole) == 8


def prompt(handle, tokens, ttft_s, priority=0, arrival_s=0.0):
    return Job(
        handle=handle,
        service="default/chat",
        service_class=ServiceClass.LS,
        priority=priority,
        arrival=handle,
        tokens=tokens,
        max_total_tokens=tokens + 10,
        predicted_tokens=tokens + 10,
        deadlines=Deadlines(arrival_s, ttft_s, 0.1),
    )


def test_a_prompt_far_longer_than_its_ttft_gives_way_to_those_that_can_attain():
    endless, short = prompt(1, 4000, 1.0), prompt(2, 10, 1.0, arrival_s=0.1)
    assert least_laxity([endless, short], 0.1, 1e-3).order == (short, endless)
    later = prompt(3, 10, 1.0, arrival_s=1.2)  # it came when the long one had waited enough
    assert least_laxity([endless, later], 1.2, 1e-3).order == (endless, later)


def test_prompts_go_by_laxity_and_priority_and_the_hopeless_do_not_pull_others_down():
    long, short = prompt(1, 400, 1.0), prompt(2, 10, 0.9)
    found = least_laxity([short, long], 0.0, 1e-3)
    assert found.order == (long, short)  # 0.6 s are left for one, 0.89 s for the other
    assert found.slack_s == pytest.approx(0.49)  # the short one comes behind 0.4 s
    assert found.ahead_s == pytest.approx(0.41)
    first = prompt(3, 10, 5.0, priority=1)
    assert least_laxity([long, first], 0.0, 1e-3).order == (first, long)
    lost = prompt(4, 100, 0.5, arrival_s=-1.0)
    found = least_laxity([lost, short], 0.0, 1e-3)
    assert found.order == (lost, short)  # a TTFT late, and still ahead of what came since
    assert found.slack_s == pytest.approx(0.79)


def test_a_decode_sets_its_due_time_with_bounded_credit_and_none_once_lost():
    paced, ahead, lost = (prompt(n, 10, 1.0) for n in range(3))
    paced.deadlines.emitted(0.5)
    assert decode_slack([paced], [paced.deadlines], 0.55, 1e-3).slack_s == pytest.approx(0.05)
    ahead.deadlines.emitted(0.5, tokens=6)
    assert decode_slack([ahead], [ahead.deadlines], 0.5, 1e-3).slack_s == pytest.approx(0.2)
    lost.deadlines.emitted(1.5)
    assert decode_slack([lost], [lost.deadlines], 1.5, 1e-3).slack_s == float("inf")


def test_rows_in_flight_are_followed_from_layer_to_layer():
    flights = InFlight(LAYERS)
    flights.settle(4)
    assert flights.runs(8) == ((0, LAYERS - 1), (4, 1))
    assert flights.runs(3) == ((0, LAYERS - 1), (3, 1))
    flights.observed([4.0, *[0.0] * (LAYERS - 1)], lanes=8)
    assert flights.parked.tolist() == [0, 4, 0, 0, 0, 0]
    flights.settle(6)  # two have started a token since
    assert flights.parked.tolist() == [2, 4, 0, 0, 0, 0]
    assert steps(flights.runs(8)) == 6
    flights.settle(0)
    assert flights.runs(8) == ((0, LAYERS),)


def test_a_prompt_that_is_cached_has_the_laxity_of_what_is_left_of_it():
    cached, short = prompt(1, 4000, 1.0), prompt(2, 10, 0.9)
    cached.found_tokens = 3840
    found = least_laxity([cached, short], 0.0, 1e-3)
    assert found.order == (cached, short)  # 0.84 s are left for one, 0.89 s for the other
    assert found.slack_s == pytest.approx(0.73)
    assert found.ahead_s == pytest.approx(0.17)
