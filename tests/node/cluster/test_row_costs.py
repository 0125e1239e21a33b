"""Costs of rows, found again in figures that were made from them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniserve_agent.node.cluster.row_costs import (
    Counters,
    RowCosts,
    RowLog,
    RowSample,
    row_costs,
    sample,
)


def made(rows, fixed_us=5000.0, ls_us=300.0, be_us=100.0):
    return [RowSample(fixed_us + ls_us * ls + be_us * be, ls, be) for ls, be in rows]


@given(
    st.lists(st.tuples(st.floats(1, 64), st.floats(0, 64)), min_size=8, max_size=40),
    st.integers(1, 2000),
    st.integers(1, 2000),
)
def test_exact_costs_are_found(rows, ls_us, be_us):
    # Corners of the square make both costs visible whatever the rest is.
    rows = [*rows, *[(1, 0), (64, 0), (1, 64), (64, 64)] * 3]
    costs = row_costs(made(rows, ls_us=ls_us, be_us=be_us))
    assert costs.ls_row_us == pytest.approx(ls_us, abs=1)
    mean_be = sum(be for _, be in rows) / len(rows)
    assert costs.be_us == pytest.approx(be_us * mean_be, abs=1 + mean_be * 0.01)


def test_sweeps_of_be_alone_do_not_count():
    rows = made([(ls, ls % 5) for ls in range(1, 30)])
    sweeps = [RowSample(400_000.0, 0.0, 9.0)] * 50
    assert row_costs([*rows, *sweeps]) == row_costs(rows)


def test_few_samples_tell_nothing():
    assert row_costs(made([(1, 2)] * 19)) == RowCosts()


def test_rows_that_never_vary_tell_nothing_of_themselves():
    costs = row_costs(made([(ls, 4) for ls in range(1, 21)]))
    assert costs == RowCosts(ls_row_us=300, be_us=None)


def test_a_cost_below_nothing_is_not_told():
    costs = row_costs(made([(ls, ls % 3) for ls in range(1, 31)], ls_us=-50))
    assert costs == RowCosts(ls_row_us=None, be_us=100)


def test_samples_are_means_per_iteration():
    taken = sample(Counters(10, 300, 0), Counters(20, 900, 150), 30, 4000.0)
    assert taken == RowSample(4000.0, 2.0, 0.5)


@pytest.mark.parametrize(
    ("after", "layers", "iteration_us"),
    [
        (Counters(10, 300, 0), 30, 4000.0),  # nothing ran
        (Counters(5, 0, 0), 30, 4000.0),  # another process
        (Counters(20, 0, 0), 30, 4000.0),
        (Counters(20, 900, 150), 0, 4000.0),
        (Counters(20, 900, 150), 30, 0.0),
    ],
)
def test_what_is_no_interval_is_no_sample(after, layers, iteration_us):
    assert sample(Counters(10, 300, 0), after, layers, iteration_us) is None


def test_a_log_keeps_the_latest():
    log = RowLog()
    assert log.latest is None
    for step in range(800):
        log.add(Counters(step, 30 * step, 0), 30, 1000.0)
    assert len(log.samples) == 600
    assert log.latest == RowSample(1000.0, 1.0, 0.0)
    assert log.costs == RowCosts()
