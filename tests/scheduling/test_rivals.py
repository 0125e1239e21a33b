"""What is characteristic of each rival policy."""

from dataclasses import replace

import pytest

from omniserve_agent.scheduling.deadlines import Deadlines
from omniserve_agent.scheduling.gpu_only_priority import GpuOnlyPriority
from omniserve_agent.scheduling.jobs import Job, JobIndex, ServiceClass, Stage, Tier
from omniserve_agent.scheduling.latency import Curve, LatencyModel, Work
from omniserve_agent.scheduling.ls_alone import LsAlone
from omniserve_agent.scheduling.plan import Caps, Room
from omniserve_agent.scheduling.policies import POLICIES, Machine, make
from omniserve_agent.scheduling.static_headroom import StaticHeadroom
from omniserve_agent.scheduling.synchronous_offload import SynchronousOffload
from omniserve_agent.scheduling.token_budget import TokenBudget

LS, BE = ServiceClass.LS, ServiceClass.BE
# 10 layers: 10 ms for up to 8 rows, then 1 ms per row.
MODEL = LatencyModel(10, Curve((1, 8, 1008), (1e-3, 1e-3, 101e-3)), Curve((1,), (0.0,)))
CAPS = Caps(
    layers=10,
    block_tokens=16,
    device_blocks=1000,
    host_blocks=1000,
    max_device_rows=64,
    join_rows=8,
    ls_prefill_rows=512,
    be_prefill_rows=256,
)
ROOM = Room(1000, 1000, 64)
FULL = Room(0, 1000, 64)  # nothing moves to the device


def index(*jobs):
    made = JobIndex()
    for job in jobs:
        made.add(job)
    return made


def job(number, service_class, stage, tokens=64, computed=None, **more):
    blocks = -(-tokens // 16)
    device = blocks if stage in (Stage.DECODE, Stage.PREFILL) else 0
    host = blocks if stage in (Stage.STAGED, Stage.BOUNDARY, Stage.HOPPING) else 0
    return Job(
        handle=number,
        service=str(service_class),
        service_class=service_class,
        priority=0,
        arrival=number,
        tokens=tokens,
        max_total_tokens=tokens + 64,
        predicted_tokens=tokens + 64,
        computed=(tokens - 1 if computed is None else computed),
        stage=stage,
        device_blocks=device,
        host_blocks=host,
        **more,
    )


def waiting(number, service_class, tokens=64):
    return job(number, service_class, Stage.WAITING, tokens, computed=0)


def test_every_policy_is_made_by_name():
    for name in POLICIES:
        plan = make(name, Machine(CAPS, MODEL, 1e10, 1e4)).plan(JobIndex(), ROOM, 0.0)
        assert not plan.device
        assert not plan.entries


def test_ls_alone_leaves_be_waiting():
    jobs = index(waiting(1, BE), waiting(2, LS))
    plan = LsAlone(CAPS, MODEL).plan(jobs, ROOM, 0.0)
    assert [a.job.handle for a in plan.admissions] == [2]
    assert jobs.count(BE, Stage.WAITING) == 1


def test_gpu_only_runs_nothing_from_the_host_and_brings_paused_requests_back_first():
    paused, fresh = job(1, BE, Stage.BOUNDARY), waiting(2, BE)
    policy = GpuOnlyPriority(CAPS, MODEL)
    full = policy.plan(index(paused, fresh), replace(ROOM, device_free_blocks=0), 0.0)
    assert not full.entries
    assert not full.admissions
    assert not full.moves
    plan = policy.plan(index(paused, fresh), ROOM, 0.0)
    assert [(m.job.handle, m.to) for m in plan.moves] == [(1, Tier.DEVICE)]
    assert not plan.admissions


def test_gpu_only_takes_its_token_budget_from_the_tightest_tpot():
    policy = GpuOnlyPriority(CAPS, MODEL)
    decodes = [job(n, LS, Stage.DECODE) for n in range(10)]
    loose = waiting(20, BE, tokens=2000)

    def planned_tokens():
        plan = policy.plan(index(*decodes, loose), ROOM, 0.0)
        return sum(chunk.rows for chunk in plan.device)

    before = planned_tokens()
    for tpot_s in (0.05, 0.2):  # the second is wider: no change
        policy.arrived(job(30, LS, Stage.DECODE, deadlines=Deadlines(0.0, 1.0, tpot_s)))
    tight = planned_tokens()
    assert tight <= 48 + 1 < before  # 10 ms + 1 ms per row beyond 8
    assert MODEL.dense.at(tight) * 10 <= 0.05


def test_static_headroom_keeps_be_within_its_share_and_sends_the_rest_away():
    held = [job(n, BE, Stage.DECODE, tokens=960) for n in range(7)]  # 64 blocks each at the end
    backlog = [waiting(10 + n, BE) for n in range(6)]
    policy = StaticHeadroom(CAPS, MODEL, headroom=0.5, overflow_jobs=2)
    plan = policy.plan(index(*held, *backlog), ROOM, 0.0)
    committed = sum(-(-j.predicted_tokens // 16) for j in held)
    admitted = sum(-(-a.job.predicted_tokens // 16) for a in plan.admissions)
    assert plan.admissions
    assert committed + admitted <= 500
    assert all(a.tier is Tier.DEVICE for a in plan.admissions)
    assert [j.handle for j in plan.overflow] == [14, 15]
    eighth = job(8, BE, Stage.DECODE, tokens=960)
    full = policy.plan(index(*held, eighth, *backlog), ROOM, 0.0)
    assert not full.admissions


def test_static_headroom_leaves_half_of_the_rows_to_ls():
    held = [job(n, BE, Stage.DECODE) for n in range(60)]
    plan = StaticHeadroom(CAPS, MODEL, headroom=0.5).plan(index(*held), ROOM, 0.0)
    assert len(plan.device) == 32


def test_synchronous_offload_waits_and_sizes_the_host_batch_by_the_device_time():
    rows = [job(n, LS, Stage.DECODE) for n in range(4)]  # 10 ms on the device
    offloaded = [job(20 + n, BE, Stage.BOUNDARY) for n in range(8)]
    # 64 tokens x 1e4 bytes = 640 kB a row; 10 ms at 3.4e8 B/s are 3.4e6 bytes: five rows.
    policy = SynchronousOffload(CAPS, MODEL, host_bytes_per_s=3.4e8, kv_bytes=1e4)
    plan = policy.plan(index(*rows, *offloaded), FULL, 0.0)
    assert plan.waits_for_host
    assert [j.handle for j in plan.entries] == [20, 21, 22, 23, 24]


def test_synchronous_offload_leaves_the_host_out_where_that_does_not_pay():
    rows = [job(n, LS, Stage.DECODE) for n in range(8)]
    # A row's dense modules take 10 ms, as those of all eight: nine tokens in 20 ms instead of 10.
    policy = SynchronousOffload(CAPS, MODEL, host_bytes_per_s=1e12, kv_bytes=1e4)
    plan = policy.plan(index(*rows, job(20, BE, Stage.BOUNDARY)), FULL, 0.0)
    assert not plan.entries
    assert not plan.waits_for_host
    alone = policy.plan(index(job(20, BE, Stage.BOUNDARY)), FULL, 0.0)
    assert alone.entries
    assert alone.waits_for_host


@pytest.mark.parametrize("name", ["static_headroom", "gpu_only_priority", "synchronous_offload"])
def test_prompts_keep_to_the_token_budget_that_the_tightest_tpot_allows(name):
    policy = make(name, Machine(CAPS, MODEL, 1e10, 1e4))
    jobs = index(
        *(job(n, LS, Stage.DECODE) for n in range(10)),
        job(20, LS, Stage.PREFILL, tokens=2000, computed=0),
        job(21, BE, Stage.PREFILL, tokens=2000, computed=0),
    )
    for tpot_s, most in ((0.2, 180), (0.05, 46)):  # 10 ms, and 1 ms per row beyond 8; a tenth less
        policy.arrived(job(30, LS, Stage.DECODE, deadlines=Deadlines(0.0, 1.0, tpot_s)))
        rows = sum(chunk.rows for chunk in policy.plan(jobs, ROOM, 0.0).device)
        assert most / 2 < rows <= most


def test_the_token_budget_grows_where_prompts_would_be_late_and_that_helps():
    """36 ms are 34 tokens, with which 100 rows of a prompt take six iterations, 216 ms of 300."""
    budget = TokenBudget(MODEL)
    due = Deadlines(0.0, 0.3, 0.04)
    budget.arrived(job(1, LS, Stage.WAITING, tokens=10, computed=0, deadlines=due))
    small = budget.tokens
    for number in range(2, 60):
        budget.arrived(job(number, LS, Stage.WAITING, tokens=100, computed=0, deadlines=due))
    rows = budget.tokens - budget.tokens // 2
    iterations = -(-100 // rows)
    assert small < budget.tokens
    assert iterations * MODEL.predict(Work(device_rows=budget.tokens, logit_rows=1)) <= 0.21
    for number in range(60, 260):  # nothing computes these in time
        budget.arrived(job(number, LS, Stage.WAITING, tokens=4000, computed=0, deadlines=due))
    assert budget.tokens == small


def test_rivals_reckon_with_what_is_left_of_a_cached_prompt():
    cached = waiting(1, LS, tokens=480)
    policy, budget = GpuOnlyPriority(CAPS, MODEL), TokenBudget(MODEL)
    cold_rows = policy.terms(index(cached)).caps.ls_prefill_rows
    cached.found_tokens, cached.deadlines = 464, Deadlines(0.0, 0.3, 0.04)
    assert policy.terms(index(cached)).caps.ls_prefill_rows == 16 < cold_rows
    budget.arrived(cached)
    short = TokenBudget(MODEL)
    short.arrived(replace(cached, tokens=16, found_tokens=0))
    assert budget.tokens == short.tokens
