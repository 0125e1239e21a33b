"""The plan benchmark drives every policy it names."""

import pytest

import plan


@pytest.mark.parametrize("policy", ["omniserve", "static_headroom"])
@pytest.mark.parametrize("layers", plan.MACHINES)
def test_every_plan_is_timed(policy, layers):
    timed = plan.drive(policy, layers, ls=4, be=8, plans=600, warm_up=5, seed=0)
    assert len(timed.seconds) == 600
    assert timed.stages["LS decode"] > 0
