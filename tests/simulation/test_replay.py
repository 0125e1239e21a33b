"""Refused requests tried again in the simulator, and prefixes that cost nothing there."""

from dataclasses import replace

import pytest

from omniserve_agent.scheduling.admission import AdmissionMode
from omniserve_agent.scheduling.jobs import ServiceClass
from omniserve_agent.simulation.experiment import Experiment, Setting
from omniserve_agent.simulation.hardware import hardware
from omniserve_agent.simulation.replay import Tried, would_attain
from omniserve_agent.simulation.workload import Arrival

LS, BE = ServiceClass.LS, ServiceClass.BE
MACHINE = replace(hardware("h200-16core", "llama-3-8b"), noise=0.0)
SETTING = Setting(
    ttft_slo_s=0.1, tpot_slo_s=0.05, seconds=20.0, warm_up_s=0.0, admission=AdmissionMode.REJECT
)


def experiment(arrivals, **fields):
    done = Experiment(MACHINE, replace(SETTING, **fields), arrivals)
    return done, done.run()


def test_a_burst_is_refused_in_part_and_those_would_have_missed_or_not():
    burst = [Arrival(1.0 + n / 1000, LS, 900, 20, "chat") for n in range(40)]
    done, figures = experiment(burst)
    assert 0 < figures.refused_share < 1
    assert figures.attained_finished >= 0.75
    tried = would_attain(done, lambda: None)
    assert tried is not None
    assert 0.0 <= tried.share <= 1.0


def test_a_replay_from_the_refusal_is_one_from_the_start():
    """Long prompts hurt and short ones do not: some would have attained, some not."""
    burst = [Arrival(1.0 + n / 500, LS, 1800 if n % 2 else 30, 20, "chat") for n in range(40)]
    done, _ = experiment(burst)
    again = [Experiment(MACHINE, done.setting, burst).would_attain(one) for one in done.refused]
    assert 0 < sum(again) < len(again)
    tried = would_attain(done, lambda: None, sample=1000)
    assert tried == Tried(sum(again), len(again))


def test_a_sample_is_spread_over_the_run():
    burst = [Arrival(1.0 + n / 1000, LS, 900, 20, "chat") for n in range(40)]
    done, _ = experiment(burst)
    tried = would_attain(done, lambda: None, sample=3)
    assert tried is not None
    assert tried.tried == 3


def test_the_share_has_wilsons_interval():
    """The figures of Newcombe (1998), table I: 81 of 263, 15 of 148, 0 of 20, 29 of 29."""
    for attained, tried, interval in (
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0, 0.1611)),
        (29, 29, (0.8830, 1.0)),
    ):
        assert Tried(attained, tried).interval == pytest.approx(interval, abs=1e-4)


def test_without_refusals_there_is_nothing_to_replay():
    done, figures = experiment([Arrival(1.0, LS, 100, 5, "chat")])
    assert figures.refused_share == 0
    assert would_attain(done, lambda: None) is None


def test_one_that_is_let_in_is_judged():
    alone = Arrival(1.0, LS, 100, 5, "chat")
    assert Experiment(MACHINE, SETTING, [alone]).would_attain(alone)
