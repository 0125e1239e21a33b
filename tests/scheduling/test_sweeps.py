"""Passes that wait for the host, and what they may not teach."""

from dataclasses import replace

import pytest

from omniserve_agent.scheduling.jobs import HOST_STAGES, Job, JobIndex, ServiceClass, Stage, Tier
from omniserve_agent.scheduling.latency import Curve, LatencyModel, Work
from omniserve_agent.scheduling.omniserve import Omniserve, kind_of
from omniserve_agent.scheduling.plan import Room
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


def test_prompts_that_run_while_the_host_attends_cost_a_sweep_nothing():
    sweeps = Sweeps(LAYERS)
    sweeps.observed(swept(20), 0.110, MODEL)  # the host takes 100 ms for 20 rows
    assert not sweeps.pay(4, 20, 20, 0.010, 0.010)
    # 24 tokens and 120 ms of prompts in 130 ms, against 5.8 tokens and 29 ms of prompts in 39
    assert sweeps.pay(4, 20, 20, 0.010, 0.010, token_s=0.005)


def test_a_sweep_as_long_as_its_prompts_tells_nothing_of_the_host():
    sweeps = Sweeps(LAYERS)
    hidden = swept(20)
    hidden.chunk_rows = [64] * 100  # 100 ms
    sweeps.observed(hidden, 0.110, MODEL)
    assert sweeps.row_s == 0.0
    sweeps.observed(swept(20), 0.210, MODEL)
    assert sweeps.host_s(20) == pytest.approx(0.200)
    sweeps.observed(hidden, 0.110, MODEL)  # the host takes no longer than this, though
    assert 0.100 < sweeps.host_s(20) < 0.200
    hidden.chunk_rows = [64] * 10
    sweeps.observed(hidden, 0.060, MODEL)
    assert sweeps.host_s(20) < 0.180


def be_job(number, stage):
    return Job(
        handle=number,
        service="default/batch",
        service_class=ServiceClass.BE,
        priority=0,
        arrival=number,
        tokens=480,
        max_total_tokens=500,
        predicted_tokens=500,
        computed=0 if stage in (Stage.WAITING, Stage.STAGED) else 479,
        stage=stage,
        device_blocks=30 if stage is Stage.DECODE else 0,
        host_blocks=30 if stage in HOST_STAGES else 0,
    )


def planned(in_flight, host_s, staged=2, device=1, caps=CAPS, hop_rows=0):
    """With rows on a full device, so that who waits can begin on the host alone."""
    policy = Omniserve(caps, MODEL)
    policy.observed(swept(CAPS.join_rows), 0.010 + host_s)
    jobs = JobIndex()
    many = {Stage.HOPPING: in_flight, Stage.STAGED: staged, Stage.DECODE: device, Stage.WAITING: 1}
    for number, stage in enumerate(stage for stage, count in many.items() for _ in range(count)):
        jobs.add(be_job(number, stage))
    return policy.plan(jobs, Room(0, 1000, 64, hop_rows), 0.0)


def test_a_sweep_has_a_lane_for_every_row_guesses_among_them():
    answer = planned(2, 0.005, hop_rows=6)
    assert answer.sweeps
    assert answer.join_rows == 6
    assert planned(2, 0.005, hop_rows=60).join_rows == CAPS.join_rows


def test_once_lanes_are_full_a_sweep_has_prompts_for_as_long_as_the_host_attends():
    """A prompt's 480 rows are two calls of a layer, 1 ms each: two layers of it in 5 ms."""
    brief, long = planned(20, 0.005), planned(20, 0.020)
    assert brief.sweeps
    assert long.sweeps
    assert brief.prefill_row_layers == 2 * 480
    assert brief.prefill_row_layers < long.prefill_row_layers
    # One row fewer than there are lanes: prompts go first, which bring another.
    assert planned(CAPS.join_rows, 0.005).prefill_row_layers > brief.prefill_row_layers


def test_an_engine_without_sweeps_plans_none():
    assert planned(20, 0.005).sweeps
    assert not planned(20, 0.005, caps=replace(CAPS, sweeps=False)).sweeps


def test_whoever_waits_may_begin_on_the_host_while_sweeps_go_on():
    """With 50 rows on the device its time is worth more than a request that advances by layers."""
    assert not planned(20, 0.0005, staged=0, device=50, caps=replace(CAPS, sweeps=False)).admissions
    sweep = planned(20, 0.0005, staged=0, device=50)
    assert [a.tier for a in sweep.admissions] == [Tier.HOST]
