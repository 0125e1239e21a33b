"""Every wait has a reason with figures."""

from omniserve_agent.scheduling.explain import explain, waits
from omniserve_agent.scheduling.jobs import Job, JobIndex, ServiceClass, Stage
from omniserve_agent.scheduling.plan import Caps, PolicyState, Room

LS, BE = ServiceClass.LS, ServiceClass.BE
CAPS = Caps(
    layers=10,
    block_tokens=16,
    device_blocks=100,
    host_blocks=100,
    max_device_rows=64,
    join_rows=8,
    ls_prefill_rows=512,
    be_prefill_rows=256,
)
STATE = PolicyState(budget_s=0.050, ls_s=0.020)


def job(handle, service_class, stage, tokens=160, **more):
    return Job(
        handle=handle,
        service=f"default/{service_class.value.lower()}",
        service_class=service_class,
        priority=0,
        arrival=handle,
        tokens=tokens,
        max_total_tokens=tokens + 160,
        predicted_tokens=tokens + 160,
        stage=stage,
        **more,
    )


def why(wanted, *others, room=None):
    jobs = JobIndex()
    for one in (wanted, *others):
        jobs.add(one)
    return explain(jobs, room or Room(100, 100, 8), CAPS, STATE, wanted)


def test_ls_waits_for_memory_or_for_prompts_before_it():
    waiting = job(1, LS, Stage.WAITING)
    assert "needs 11 KV blocks" in why(waiting, room=Room(3, 100, 8))
    resident = job(2, BE, Stage.DECODE, device_blocks=20)
    assert "BE leaves the device for it" in why(waiting, resident, room=Room(3, 100, 8))
    before = job(3, LS, Stage.PREFILL, tokens=300)
    assert why(waiting, before) == "1 LS prompts with 300 rows share the prefill with it"


def test_be_waits_for_prompts_memory_or_because_the_device_yields_more():
    waiting = job(9, BE, Stage.WAITING)
    staged = [job(n, BE, Stage.STAGED) for n in range(2)]
    assert why(waiting, *staged) == "2 BE prompts are being computed before it"
    assert "20 KV blocks; 4 are free" in why(waiting, room=Room(4, 5, 8))
    assert "yields less" in why(waiting)
    first, second = job(1, BE, Stage.STAGED, prompt=7), job(2, BE, Stage.WAITING, prompt=7)
    assert "another request computes the same prompt" in why(second, first)


def test_work_under_way_says_what_ls_leaves_and_what_it_queues_for():
    assert "30.0 ms of an iteration, LS itself takes 20.0 ms" in why(job(1, BE, Stage.STAGED))
    queued = [job(n, BE, Stage.BOUNDARY) for n in range(3)]
    assert why(*queued, room=Room(9, 9, 2)) == "2 slots are free and 3 rows want one"
    assert why(*queued, room=Room(9, 9, 3)) == ""
    assert why(job(1, LS, Stage.DECODE)) == ""


def test_each_service_gets_the_reason_of_its_first():
    jobs = JobIndex()
    for one in (job(1, LS, Stage.WAITING), job(2, BE, Stage.WAITING), job(3, BE, Stage.WAITING)):
        jobs.add(one)
    found = waits(jobs, Room(4, 5, 8), CAPS, STATE)
    assert set(found) == {"default/ls", "default/be"}
