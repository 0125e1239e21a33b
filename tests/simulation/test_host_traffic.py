"""A device that host reads slow down: iterations take it, and plans reckon with it."""

from dataclasses import replace

import pytest

from omniserve_agent.scheduling.jobs import ServiceClass
from omniserve_agent.simulation.experiment import Setting, node_for
from omniserve_agent.simulation.hardware import hardware
from omniserve_agent.simulation.workload import Arrival
from support.policies import Watched

LS, BE = ServiceClass.LS, ServiceClass.BE
QUIET = replace(hardware("h200-16core", "llama-3-8b"), noise=0.0)
SLOWED = replace(QUIET, latency=replace(QUIET.latency, host=1e-10))


def observed(machine, **setting):
    """What the policy is told of iterations that did not wait."""
    node = node_for(machine, Setting(policy="omniserve", be_device_residency=False, **setting))
    seen, told = [], node.policy.observed

    def note(work, seconds):
        seen.append((work, seconds))
        told(work, seconds)

    node.policy = Watched(node.policy, observed=note)
    for number in range(20):
        node.submit(Arrival(0.0, LS, 200, 300, f"ls{number}"))
        node.submit(Arrival(0.0, BE, 1000, 300, f"be{number}"))
    for _ in range(400):
        node.step(node.now_s + 1.0)
    return [(work, seconds) for work, seconds in seen if not work.waited]


def test_iterations_take_what_the_host_reads_meanwhile():
    seen = observed(SLOWED)
    read = [work.host_kv_bytes for work, _ in seen]
    token_bytes = QUIET.model.kv_bytes / QUIET.model.layers
    for work, seconds in seen:
        assert seconds == pytest.approx(SLOWED.latency.predict(work))
        assert (work.host_kv_bytes > 0) == (sum(work.joined_rows) > 0)
    assert max(read) > 1000 * token_bytes
    assert not any(work.host_kv_bytes for work, _ in observed(QUIET))


def test_of_int8_it_reads_less():
    def cost_s(**setting):
        node = node_for(SLOWED, Setting(policy="omniserve", **setting))
        assert node.policy.model is node.hardware.latency
        return node.hardware.latency.host

    assert cost_s(int8_kv=True) < 0.6 * cost_s()
