"""The latency model: curves, prediction, fitting, correction."""

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniserve_agent.scheduling.latency import (
    MOST_RATIO,
    Correction,
    Curve,
    LatencyModel,
    Work,
    accuracy,
    fit,
)

DENSE = Curve((1, 4, 8, 16), (1e-3, 1e-3, 2e-3, 4e-3))
HEAD = Curve((1, 16), (1e-3, 2e-3))
TRUE = LatencyModel(10, DENSE, HEAD, fixed=2e-3, key=1e-7, pair=2e-8, join=3e-6, host=1e-11)


@pytest.mark.parametrize(
    ("rows", "seconds"),
    [(0, 0.0), (1, 1e-3), (3, 1e-3), (6, 1.5e-3), (16, 4e-3), (32, 8e-3), (0.5, 1e-3)],
)
def test_curve_is_linear_between_points_and_beyond(rows, seconds):
    assert DENSE.at(rows) == pytest.approx(seconds)


def test_edges_are_where_a_step_follows():
    staircase = Curve((1, 32, 33, 64, 65, 96), (1.0, 1.0, 2.0, 2.0, 3.0, 3.0))
    assert staircase.edges() == (32, 64)
    assert Curve((1,), (1.0,)).edges() == ()
    assert Curve((1, 2, 3), (1.0, 2.0, 3.0)).edges() == ()


def test_prediction_adds_up():
    work = Work(device_rows=4, joined_rows=[4] * 5, chunk_rows=[8, 8], logit_rows=1)
    # 5 layers of 4 rows, 5 of 8, two chunks of 8, the head, fixed, 20 joined rows.
    expected = 5 * 1e-3 + 5 * 2e-3 + 2 * 2e-3 + 1e-3 + 2e-3 + 20 * 3e-6
    assert TRUE.predict(work) == pytest.approx(expected)


WORKS = st.builds(
    Work,
    device_rows=st.integers(1, 30),
    joined_rows=st.lists(st.integers(0, 8), min_size=10, max_size=10),
    chunk_rows=st.lists(st.integers(1, 32), max_size=10),
    logit_rows=st.integers(0, 8),
    device_keys=st.integers(0, 10_000),
    device_pairs=st.integers(0, 100_000),
    staged_pairs=st.integers(0, 100_000),
    host_kv_bytes=st.floats(0, 1e8),
)


@given(st.lists(WORKS, min_size=30, max_size=40), WORKS)
def test_fitting_finds_the_model_again(works, unseen):
    base = LatencyModel(10, DENSE, HEAD)
    found = fit(base, works, [TRUE.predict(work) for work in works])
    for work in works:
        assert found.predict(work) == pytest.approx(TRUE.predict(work), rel=1e-3)
    assert all(getattr(found, name) >= 0 for name in ("fixed", "key", "pair", "join", "host"))
    assert found.predict(unseen) >= base.predict(unseen)


def test_fitting_tells_joins_from_what_the_host_reads_meanwhile():
    """Where rows of different lengths join: else the two would be one."""
    base, works = LatencyModel(10, DENSE, HEAD), []
    for joined in (0.0, 1.0, 3.0):
        for row_bytes in (1e5, 4e6):
            read = 10 * joined * row_bytes
            works.append(Work(device_rows=4, joined_rows=[joined] * 10, host_kv_bytes=read))
    found = fit(base, works, [TRUE.predict(work) for work in works])
    assert found.join == pytest.approx(TRUE.join)
    assert found.host == pytest.approx(TRUE.host)


def test_joins_cost_nothing_where_they_may_as_well_be_noise():
    dice, free = random.Random(1), replace(TRUE, join=0.0, host=0.0)
    works = [
        Work(
            device_rows=4,
            device_keys=dice.randrange(10_000),
            joined_rows=[float(dice.randrange(4))] * 10,
            host_kv_bytes=dice.uniform(0, 1e8),
        )
        for _ in range(200)
    ]

    def found(model):
        noisy = [model.predict(work) * dice.gauss(1.0, 0.02) for work in works]
        return fit(LatencyModel(10, DENSE, HEAD), works, noisy)

    assert [(m.join, m.host) for m in (found(free) for _ in range(20))].count((0.0, 0.0)) >= 18
    dear = replace(TRUE, join=5e-5, host=2e-11)
    for model in (found(dear) for _ in range(20)):
        assert model.join == pytest.approx(dear.join, rel=0.5)
        assert model.host == pytest.approx(dear.host, rel=0.5)


def test_what_waited_for_the_host_is_no_observation_of_the_device():
    base = LatencyModel(10, DENSE, HEAD)
    works = [Work(device_rows=rows, joined_rows=[1.0] * 10) for rows in (1, 4, 8)]
    seconds = [TRUE.predict(work) for work in works]
    waited = Work(device_rows=1, joined_rows=[8.0] * 10, waited=True)
    assert fit(base, [*works, waited], [*seconds, 9.0]) == fit(base, works, seconds)
    assert fit(base, [waited], [9.0]) == base


def test_fitting_never_pays_for_more_work():
    works = [Work(device_rows=1, device_keys=keys) for keys in (0, 1000, 2000)]
    found = fit(LatencyModel(10, DENSE, HEAD), works, [0.03, 0.02, 0.01])
    assert found.key == 0


@given(WORKS, st.integers(1, 20))
def test_more_rows_never_cost_less(work, more):
    before = TRUE.predict(work)
    work.device_rows += more
    assert TRUE.predict(work) >= before


def test_correction_learns_a_factor_per_kind_and_shrugs_off_an_outlier():
    correction = Correction(alpha=0.5)
    for _ in range(20):
        correction.observe("decode", 0.010, 0.012)
    assert correction.apply("decode", 0.010) == pytest.approx(0.012, rel=1e-3)
    assert correction.apply("prefill", 0.010) == 0.010
    correction.observe("decode", 0.010, 10.0)
    assert correction.apply("decode", 0.010) < 0.02


def test_margin_is_the_quantile_of_what_came():
    correction = Correction(alpha=0.0)
    assert correction.margin(0.99) == 1.0
    for observed in range(1, 201):
        correction.observe("decode", 1.0, observed / 200)
    assert correction.margin(0.5) == pytest.approx(0.505)
    assert correction.margin(0.99) == pytest.approx(0.995)


def test_a_slow_first_iteration_does_not_rule_the_margin():
    """A cold start or a suspended laptop: with one sample it would be every quantile."""
    correction = Correction(alpha=0.0)
    correction.observe("decode", 1.0, 70.0)
    assert correction.margin(0.99) == 1.0
    for _ in range(600):
        correction.observe("decode", 1.0, 70.0)
    assert correction.margin(0.99) == MOST_RATIO


def test_accuracy():
    assert accuracy(0.9, 1.0) == pytest.approx(0.9)
    assert accuracy(1.1, 1.0) == pytest.approx(0.9)
