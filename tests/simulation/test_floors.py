"""`minSharePercent` in the simulator: who works, and that the promise is kept beside busy LS."""

from dataclasses import replace

import pytest

from omniserve_agent.scheduling.floors import MOST_OWED_S
from omniserve_agent.scheduling.jobs import ServiceClass
from omniserve_agent.scheduling.latency import Work
from omniserve_agent.simulation.experiment import Setting, node_for
from omniserve_agent.simulation.hardware import hardware
from omniserve_agent.simulation.workload import Arrival, latency_sensitive
from support.policies import Watched

LS, BE = ServiceClass.LS, ServiceClass.BE
MACHINE = replace(hardware("h200-16core", "llama-3-8b"), noise=0.0)


def observed(node):
    """Sums over the iterations of what the policy is told: row-layers of all, and by service."""
    total, served, inner = Work(), {}, node.policy.observed

    def observe(work, seconds):
        total.device_rows += MACHINE.latency.layers * work.device_rows + int(sum(work.joined_rows))
        total.chunk_rows.append(sum(work.chunk_rows))
        for name, had in work.served.items():
            before = served.setdefault(name, [0, 0])
            before[0] += had.batch
            before[1] += had.staged
        inner(work, seconds)

    node.policy = Watched(node.policy, observed=observe)
    return total, served


@pytest.mark.parametrize("residency", [True, False])
def test_all_that_a_promised_service_did_is_told_once_and_nothing_of_others(residency):
    setting = Setting(seconds=0.0, be_device_residency=residency, same_iteration_joins=False)
    node = node_for(MACHINE, setting)
    node.min_shares = {"a": 20}
    total, served = observed(node)
    for index in range(6):
        node.submit(Arrival(0.0, BE, 300, 20, "ab"[index % 2]))
    while node.runs:
        node.step(1e9)
    layers, prompts, tokens = MACHINE.latency.layers, 3 * 300, 3 * 19
    assert set(served) == {"a"}
    assert sum(served["a"]) == layers * (prompts + tokens)
    assert 2 * sum(served["a"]) == total.device_rows + sum(total.chunk_rows)
    if not residency:
        assert served["a"] == [layers * tokens, layers * prompts]


def test_a_service_without_a_promise_is_not_told():
    node = node_for(MACHINE, Setting(seconds=0.0))
    _, served = observed(node)
    node.submit(Arrival(0.0, BE, 300, 20, "a"))
    while node.runs:
        node.step(1e9)
    assert served == {}


def beside_busy_ls(share, seconds=12.0):
    """What a keeps open 8 requests beside 24 of b came to: its output tokens, and the policy."""
    setting = Setting(seconds=seconds, tpot_slo_s=0.02, ttft_slo_s=0.5)
    node = node_for(MACHINE, setting)
    node.min_shares = {"a": share}
    pending, tokens = list(reversed(latency_sensitive(40.0, seconds, 1))), 0
    while node.now_s < seconds:
        while pending and pending[-1].arrival_s <= node.now_s:
            node.submit(pending.pop())
        names = [run.arrival.service for run in node.runs.values()]
        for name, most in (("b", 24), ("a", 8)):
            for _ in range(most - names.count(name)):
                node.submit(Arrival(0.0, BE, 2000, 100, name))
        node.step(pending[-1].arrival_s if pending else seconds)
    for run in (*node.runs.values(), *node.ended):
        tokens += run.output_tokens if run.arrival.service == "a" else 0
    return tokens, node.policy


def test_a_service_gets_its_share_beside_a_larger_one_and_busy_ls():
    without, _ = beside_busy_ls(0)
    tokens, policy = beside_busy_ls(20)
    assert tokens > 1.4 * without
    assert policy._floors._owed_s["a"] < 0.5 * MOST_OWED_S
