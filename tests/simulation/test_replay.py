"""Refused requests tried again in the simulator, and prefixes that cost nothing there."""

from dataclasses import replace

from omniserve_agent.scheduling.admission import AdmissionMode
from omniserve_agent.scheduling.jobs import ServiceClass
from omniserve_agent.simulation.experiment import Experiment, Setting
from omniserve_agent.simulation.hardware import hardware
from omniserve_agent.simulation.replay import would_attain
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
    share = would_attain(done, lambda: None)
    assert share is not None
    assert 0.0 <= share <= 1.0
    assert not done.let_in_attained


def test_without_refusals_there_is_nothing_to_replay():
    done, figures = experiment([Arrival(1.0, LS, 100, 5, "chat")])
    assert figures.refused_share == 0
    assert would_attain(done, lambda: None) is None


def test_one_that_is_let_in_is_judged():
    alone = Arrival(1.0, LS, 100, 5, "chat")
    done = Experiment(MACHINE, SETTING, [alone], let_in=alone)
    done.run()
    assert done.let_in_attained
