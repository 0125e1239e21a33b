"""Who comes again when it was told to is let in, and was not sent away for far too long.

The engine of the simulator runs on from the moment of a refusal, and nothing else comes.
"""

from dataclasses import replace
from typing import NamedTuple

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from omniserve_agent.scheduling import policies
from omniserve_agent.scheduling.admission import AdmissionMode, Gate
from omniserve_agent.scheduling.deadlines import Deadlines
from omniserve_agent.scheduling.jobs import Job, ServiceClass
from omniserve_agent.scheduling.retry import LEAST_RETRY_S, MOST_RETRY_S
from omniserve_agent.simulation.experiment import Setting, machine_for
from omniserve_agent.simulation.hardware import hardware
from omniserve_agent.simulation.node import Node
from omniserve_agent.simulation.workload import Arrival

LS, BE = ServiceClass.LS, ServiceClass.BE
FAST = hardware("h200-16core", "llama-3-8b")
# Iterations of 25 ms and KV for 4,160 tokens, so that requests stay for seconds and fill it.
SLOW = replace(
    FAST,
    latency=replace(FAST.latency, fixed=0.02),
    device_blocks=260,
    slots=6,
    max_device_rows=16,
    noise=0.0,
)
# Promised over the time from which on it would have been let in: what is not counted on, the next
# of the moments that are looked at, and a promised pace where the engine turned out faster.
TOO_LATE = {0: 2.5, 8: 4.0}  # by BE requests beside: they may stretch iterations, or not
QUICK_S = 0.5  # added to that: moments begin at a second


class Engine(NamedTuple):
    """Under way."""

    node: Node
    gate: Gate


LS_REQUESTS = st.lists(
    st.tuples(st.integers(1, 900), st.integers(1, 250), st.floats(0.0, 0.3)),
    min_size=40,
    max_size=40,
)


def engine(ttft_s, tpot_s, be):
    setting = Setting(
        ttft_slo_s=ttft_s, tpot_slo_s=tpot_s, ls_prefill_rows=512, be_prefill_rows=256
    )
    machine = machine_for(SLOW, setting)
    policy = policies.make("omniserve", machine)
    node = Node(SLOW, policy, seed=1, slo=(ttft_s, tpot_s))
    for _ in range(be):
        node.submit(Arrival(0.0, BE, 300, 2000))
    return Engine(node, policies.gate_for(policy, machine, AdmissionMode.REJECT))


def admits(at: Engine, refused: Job) -> bool:
    """One like it that came now."""
    due, now_s = refused.deadlines, at.node.now_s
    new = replace(refused, deadlines=Deadlines(now_s, due.ttft_s, due.tpot_s))
    return at.gate.judge(at.node.jobs, new, now_s).admitted


def first_refused(at: Engine, requests) -> Job | None:
    """Of requests that come one after the other, the first that admission does not let in."""
    node = at.node
    for prompt, output, pause_s in requests:
        until_s = node.now_s + pause_s
        while node.now_s < until_s:
            node.step(until_s)
        arrival = Arrival(node.now_s, LS, prompt, output)
        job = node.job_for(arrival)
        if not at.gate.judge(node.jobs, job, node.now_s).admitted:
            return job
        node.submit(arrival)
    return None


def run_on(at: Engine, seconds, holds):
    """Until then; seconds until `holds` did for good, and whether it does at the end."""
    node, came_s, since_s = at.node, at.node.now_s, None
    while node.now_s < came_s + seconds:
        held = holds()
        since_s = (node.now_s - came_s if since_s is None else since_s) if held else None
        node.step(came_s + seconds)
    return seconds if since_s is None else since_s, holds()


@pytest.mark.parametrize("be", TOO_LATE)
@settings(max_examples=12, deadline=None)
@given(LS_REQUESTS, st.sampled_from((0.15, 0.4, 2.0)), st.sampled_from((0.03, 0.05, 0.2)))
def test_a_retry_at_the_promised_time_is_let_in(be, requests, ttft_s, tpot_s):
    at = engine(ttft_s, tpot_s, be)
    refused = first_refused(at, requests)
    assume(refused is not None)
    promised_s = at.gate.retry_s(at.node.jobs, refused, at.node.now_s)
    assert LEAST_RETRY_S <= promised_s < MOST_RETRY_S
    since_s, admitted = run_on(at, promised_s, lambda: admits(at, refused))
    assert admitted
    assert promised_s <= max(LEAST_RETRY_S, TOO_LATE[be] * (since_s + QUICK_S))
