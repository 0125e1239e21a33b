"""The plan benchmark drives every policy it names, and tells its sides apart."""

import pytest

import plan
from plan_drive import MACHINES, Order, Times, drive


@pytest.mark.parametrize("policy", ["omniserve", "static_headroom"])
@pytest.mark.parametrize("layers", MACHINES)
def test_every_plan_is_timed(policy, layers):
    timed = drive(Order(policy, layers, ls=4, be=8, plans=600, warm_up=5, seed=0))
    assert len(timed.seconds) == 600
    assert timed.stages["LS decode"] > 0


def test_a_plan_that_one_round_was_held_up_in_has_the_time_of_the_others():
    rounds = [Times(True, seconds, {}) for seconds in ([1e-6, 9e-6], [8e-6, 2e-6], [3e-6, 4e-6])]
    row = plan.row(Order("omniserve", 32, 1, 1, 2, 0, 0), "compiled", rounds)
    assert row["side"] == "compiled"
    assert row["rounds_us_p50"] == pytest.approx([5.0, 5.0, 3.5])
    assert row["plan_us_p50"] == pytest.approx(5.0)
    assert row["least_us_p50"] == pytest.approx(1.5)
    assert row["plan_us_max"] == pytest.approx(9.0)
