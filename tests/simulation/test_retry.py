"""Who comes again when it was told to is let in, and was not sent away for far too long.

The engine of the simulator runs on from the moment of a refusal, and nothing else comes. Promises
are predictions: of the same scenes in every run, a share has to come true.
"""

import random
from dataclasses import replace
from typing import NamedTuple

import pytest

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
SCENES = 36
LET_IN, NOT_TOO_LATE = 0.95, 0.95  # of them, at least


class Engine(NamedTuple):
    """Under way."""

    node: Node
    gate: Gate


class Told(NamedTuple):
    """Somebody was refused and came again at the promised time."""

    promised_s: float
    since_s: float  # from then on it would have been let in
    admitted: bool


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


def scene(seed, be) -> Told | None:
    """None where everybody was let in."""
    rng = random.Random(seed)
    ttft_s, tpot_s = rng.choice((0.15, 0.4, 2.0)), rng.choice((0.03, 0.05, 0.2))
    requests = [
        (rng.randint(1, 900), rng.randint(1, 250), rng.uniform(0.0, 0.3)) for _ in range(40)
    ]
    at = engine(ttft_s, tpot_s, be)
    refused = first_refused(at, requests)
    if refused is None:
        return None
    promised_s = at.gate.retry_s(at.node.jobs, refused, at.node.now_s)
    return Told(promised_s, *run_on(at, promised_s, lambda: admits(at, refused)))


@pytest.mark.parametrize("be", TOO_LATE)
def test_a_retry_at_the_promised_time_is_let_in(be):
    found = [told for seed in range(SCENES) if (told := scene(seed, be))]
    assert len(found) > SCENES / 2, "most scenes have somebody who is refused"
    assert all(LEAST_RETRY_S <= told.promised_s < MOST_RETRY_S for told in found)
    let_in = [told.admitted for told in found]
    assert sum(let_in) >= LET_IN * len(found)
    in_time = [
        told.promised_s <= max(LEAST_RETRY_S, TOO_LATE[be] * (told.since_s + QUICK_S))
        for told in found
    ]
    assert sum(in_time) >= NOT_TOO_LATE * len(found)
