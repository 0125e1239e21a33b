"""Random workloads through a simulated engine, under every policy: what must always hold."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omniserve_agent.scheduling import policies
from omniserve_agent.scheduling.jobs import DEVICE_STAGES, HOST_STAGES, ServiceClass, Stage
from omniserve_agent.simulation.experiment import Setting, machine_for
from omniserve_agent.simulation.hardware import BLOCK_TOKENS, hardware
from omniserve_agent.simulation.node import Node
from omniserve_agent.simulation.workload import Arrival

LS, BE = ServiceClass.LS, ServiceClass.BE
SMALL = replace(
    hardware("h200-16core", "llama-3-8b"), device_blocks=260, slots=6, max_device_rows=16, noise=0.1
)
REMOTE = replace(hardware("h200-16core", "llama-3-8b", 2, 10.0), device_blocks=260, slots=6)
STEPS = 30_000
SAME = {1: 40, 2: 700}  # prompts that several have: their tokens
NEVER_ENDS = ("ls_alone",)  # BE, by design

ARRIVALS = st.lists(
    st.builds(
        Arrival,
        st.floats(0, 3),
        st.sampled_from(ServiceClass),
        st.integers(1, 1200),
        st.integers(1, 60),
        st.just(""),
        st.sampled_from((None, 100)),
        st.sampled_from((None, 1, 2)),
    ),
    min_size=1,
    max_size=25,
)


class Watched:
    """A policy whose plans are checked as they are made."""

    def __init__(self, inner, caps):
        self._inner, self._caps = inner, caps

    def plan(self, jobs, room, now_s):
        plan = self._inner.plan(jobs, room, now_s)
        decodes = [c for c in plan.device if c.rows == 1 and c.job.stage is Stage.DECODE]
        assert len(decodes) <= self._caps.max_device_rows
        assert len({c.job.handle for c in plan.device}) == len(plan.device)
        assert len(plan.entries) <= room.free_slots
        moving = {move.job.handle for move in plan.moves if move.to.name == "HOST"}
        assert not moving & {chunk.job.handle for chunk in plan.device}
        ls = [job for job in jobs.at(LS, Stage.DECODE) if not job.held]
        planned = {chunk.job.handle for chunk in plan.device}
        left_out = [job for job in ls if job.handle not in planned]
        be_rows = [c for c in plan.device if c.job.service_class is BE]
        assert not (left_out and be_rows), "an LS row gave way to BE"
        return plan

    def __getattr__(self, name):
        return getattr(self._inner, name)


def run(policy, arrivals, seed=1, depth=0, hardware=SMALL):
    """The node after all that can end has ended, and what happened in order."""
    setting = Setting(policy=policy, ls_prefill_rows=512, be_prefill_rows=256)
    machine = machine_for(hardware, setting)
    node = Node(hardware, Watched(policies.make(policy, machine), machine.caps), seed, depth=depth)
    arrivals = [replace(a, prompt_tokens=SAME.get(a.prompt, a.prompt_tokens)) for a in arrivals]
    pending = sorted(arrivals, key=lambda one: one.arrival_s, reverse=True)
    for _ in range(STEPS):
        while pending and pending[-1].arrival_s <= node.now_s:
            node.submit(pending.pop())
        waits = [r for r in node.runs.values() if policy not in NEVER_ENDS or is_ls(r)]
        if not pending and not waits:
            break
        node.step(pending[-1].arrival_s if pending else node.now_s + 1.0)
        check_memory(node)
    else:
        raise AssertionError(f"{len(waits)} requests never ended: {waits[:3]}")
    return node


def is_ls(one):
    return one.job.service_class is LS


def check_memory(node):
    jobs = [one.job for one in node.runs.values()]
    assert node.kv.device.free >= 0
    assert node.kv.host.free >= 0
    shared = any(job.prompt is not None for job in jobs)
    for kv, held in (
        (node.kv.device, sum(job.device_blocks for job in jobs)),
        (node.kv.host, sum(job.host_blocks for job in jobs)),
    ):
        assert held + kv.free >= kv.blocks
        assert shared or held + kv.free == kv.blocks
    ahead = node._ahead.entries if node._ahead else ()
    under_way = [job for job in jobs if job.stage is Stage.HOPPING]
    assert node.flights.count == len(under_way) - sum(run.job in under_way for run in ahead)
    for one in node.runs.values():
        assert one.job.tokens == one.arrival.prompt_tokens + one.output_tokens + one.pending
        assert one.pending <= node.depth
        assert one.pending or one.crossing or not one.job.held
        assert one.job.held or not one.crossing
        assert not (one.crossing and one.job.stage is Stage.HOPPING)
    for job in jobs:
        held = job.device_blocks if job.stage in DEVICE_STAGES else job.host_blocks
        if job.stage in (*DEVICE_STAGES, *HOST_STAGES):
            assert held * BLOCK_TOKENS >= job.computed


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("policy", policies.POLICIES)
@settings(max_examples=12, deadline=None)
@given(arrivals=ARRIVALS)
def test_no_request_is_lost_and_no_limit_is_broken(depth, policy, arrivals):
    check_ends(policy, arrivals, run(policy, arrivals, depth=depth))


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("policy", ["omniserve", "static_headroom", "synchronous_offload"])
@settings(max_examples=6, deadline=None)
@given(arrivals=ARRIVALS)
def test_nor_where_kv_crosses_a_network(depth, policy, arrivals):
    check_ends(policy, arrivals, run(policy, arrivals, depth=depth, hardware=REMOTE))


def check_ends(policy, arrivals, node):
    ended = [one for one in node.ended if policy not in NEVER_ENDS or is_ls(one)]
    wanted = [a for a in arrivals if policy not in NEVER_ENDS or a.service_class is LS]
    assert len(ended) == len(wanted)
    assert all(one.output_tokens == one.arrival.output_tokens for one in ended)


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("policy", policies.POLICIES)
@settings(max_examples=4, deadline=None)
@given(arrivals=ARRIVALS)
def test_the_same_seed_gives_the_same_run(depth, policy, arrivals):
    first, second = run(policy, arrivals, depth=depth), run(policy, arrivals, depth=depth)
    assert [(r.arrival, r.last_token_s) for r in first.ended] == [
        (r.arrival, r.last_token_s) for r in second.ended
    ]
    assert first.counts == second.counts
