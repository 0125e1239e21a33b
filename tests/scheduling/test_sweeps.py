"""Passes that wait for the host, and what they may not teach."""

import pytest

from omniserve_agent.scheduling.latency import Curve, LatencyModel, Work
from omniserve_agent.scheduling.omniserve import Omniserve, kind_of
from omniserve_agent.scheduling.sweeps import Sweeps
from support.scheduling import CAPS, LAYERS

MODEL = LatencyModel(LAYERS, Curve((1, 100), (1e-3, 1e-3)), Curve((1,), (0.0,)))


def swept(rows, layers=LAYERS):
    return Work(device_rows=2, joined_rows=[float(rows)] * layers, waited=True)


def test_a_pass_that_waited_moves_neither_prices_nor_margin():
    """Else BE alone would make LS look several times as dear as it is when it comes."""
    policy = Omniserve(CAPS, MODEL)
    for _ in range(200):
        policy.observed(swept(20), 0.200)  # twenty times what the device needs
    assert policy.correction.factors == {}
    policy.costs.refresh()
    assert policy.costs.margin == 1.0
    assert kind_of(swept(20)) == "sweep"
    policy.observed(Work(device_rows=2), 0.015)
    assert policy.correction.factors["decode"] > 1.0


def test_sweeps_pay_until_the_host_is_seen_to_be_slow():
    sweeps = Sweeps(LAYERS)
    assert sweeps.pay(4, 20, 20, 0.010, 0.010)  # nothing known: 24 tokens against 5.8
    sweeps.observed(swept(20), 0.110, MODEL)  # 100 ms for 200 row-layers
    assert sweeps.host_s(20) == pytest.approx(0.100)
    assert not sweeps.pay(4, 20, 20, 0.010, 0.010)
    assert sweeps.pay(0, 20, 20, 0.010, 0.010)  # 20 tokens in 110 ms against 1.8 in 10


def test_a_sweep_that_was_cut_short_tells_nothing():
    sweeps = Sweeps(LAYERS)
    sweeps.observed(swept(20, layers=3), 0.5, MODEL)
    sweeps.observed(Work(device_rows=4, joined_rows=[1.0] * LAYERS), 0.5, MODEL)
    assert sweeps.row_s == 0.0


def test_waiting_is_tried_again_after_a_while():
    sweeps = Sweeps(LAYERS)
    sweeps.observed(swept(20), 0.110, MODEL)
    for _ in range(5000):
        if sweeps.pay(4, 20, 20, 0.010, 0.010):
            break
    else:
        pytest.fail("never tried again")
