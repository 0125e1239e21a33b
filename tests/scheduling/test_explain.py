"""Every wait has a reason with figures."""

from dataclasses import replace

import pytest

from omniserve_agent.scheduling import policies
from omniserve_agent.scheduling.admission import ADMITTED, Verdict
from omniserve_agent.scheduling.be_queue import NEXT
from omniserve_agent.scheduling.explain import Moment, explain, held, waits
from omniserve_agent.scheduling.jobs import Job, JobIndex, ServiceClass, Stage
from omniserve_agent.scheduling.latency import Curve, LatencyModel
from omniserve_agent.scheduling.plan import Caps, DeviceChunk, Plan, PolicyState, Room, Terms

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
TERMS = Terms(CAPS)
STATE = PolicyState(budget_s=0.050, ls_s=0.020, prompts_s=0.030)


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


def index(*jobs):
    found = JobIndex()
    for one in jobs:
        found.add(one)
    return found


def why(wanted, *others, room=None, plan=None, state=STATE, terms=TERMS):
    jobs = index(wanted, *others)
    return explain(Moment(jobs, room or Room(100, 100, 8), terms, state, plan), wanted)


def test_ls_waits_for_memory_or_for_prompts_before_it():
    waiting = job(1, LS, Stage.WAITING)
    assert "needs 11 KV blocks" in why(waiting, room=Room(3, 100, 8))
    resident = job(2, BE, Stage.DECODE, device_blocks=20)
    assert "BE leaves the device for it" in why(waiting, resident, room=Room(3, 100, 8))
    before = job(3, LS, Stage.PREFILL, tokens=300)
    assert why(waiting, before) == "1 LS prompts with 300 rows share the prefill with it"


def test_blocks_that_others_hold_are_not_named_as_needed():
    shared = job(1, LS, Stage.WAITING, found_tokens=144, shared_blocks=9)
    assert "needs 2 KV blocks" in why(shared, room=Room(1, 100, 8))
    before = job(3, LS, Stage.WAITING, found_tokens=144)
    assert why(shared, before) == "1 LS prompts with 16 rows share the prefill with it"
    first, waiting = job(7, BE, Stage.DECODE), job(9, BE, Stage.WAITING)
    assert "2 for its queue" in why(waiting, first, shared, room=Room(4, 5, 8))


def test_ls_waits_for_another_that_computes_its_prompt():
    first, second = job(1, LS, Stage.PREFILL, prompt=7), job(2, LS, Stage.WAITING, prompt=7)
    assert "another request computes the same prompt" in why(second, first)


def test_be_waits_for_prompts_memory_or_because_the_device_yields_more():
    first, waiting = job(1, BE, Stage.DECODE), job(9, BE, Stage.WAITING)
    full, host_full = Room(4, 100, 8), Room(4, 5, 8)
    staged = [job(n, BE, Stage.STAGED) for n in range(2)]
    device = "it is expected to need 20 KV blocks on the device, 4 are free there"
    assert device in why(waiting, *staged, room=full)
    assert why(waiting, *staged, room=full).endswith(
        "; 2 BE prompts are being computed for the host before it"
    )
    assert why(waiting, first, room=host_full).endswith(
        "; 5 blocks are free on the host beside the growth of others"
    )
    unpaid = replace(TERMS, host_pays=False)
    assert why(waiting, first, room=full, terms=unpaid).endswith(
        "; a prompt for the host yields less than leaving the time to the device"
    )
    assert why(waiting, first) == NEXT
    first, second = job(1, BE, Stage.STAGED, prompt=7), job(2, BE, Stage.WAITING, prompt=7)
    assert "another request computes the same prompt" in why(second, first)


def test_who_is_not_the_first_in_order_waits_for_what_the_first_waits_for():
    first, second = job(1, BE, Stage.WAITING), job(2, BE, Stage.WAITING)
    assert why(second, first, room=Room(4, 5, 8)).startswith(
        "1 BE requests wait before it; the first of them: "
    )
    promised = replace(TERMS, be_first="default/other")
    assert why(second, first, terms=promised).startswith("1 BE requests wait before it")
    second.service = "default/other"
    assert why(second, first, terms=promised) == NEXT


def of_policy(name, wanted, *others, room):
    model = LatencyModel(10, Curve((1, 64), (1e-3, 2e-3)), Curve((1, 64), (1e-3, 1e-3)), fixed=1e-3)
    policy = policies.make(name, policies.Machine(CAPS, model, 1e9, 1e4))
    jobs = index(wanted, *others)
    for one in (wanted, *others):
        policy.arrived(one)
    plan = policy.plan(jobs, room, 0.0)
    return explain(Moment(jobs, room, policy.terms(jobs), policy.state, plan), wanted)


def test_ls_alone_says_that_be_never_runs():
    waiting = job(1, BE, Stage.WAITING)
    assert of_policy("ls_alone", waiting, room=Room(1024, 1024, 8)) == (
        "under the policy ls_alone BE never runs"
    )


@pytest.mark.parametrize("name", ["static_headroom", "gpu_only_priority"])
def test_policies_that_use_the_device_alone_do_not_speak_of_the_host(name):
    waiting, before = job(9, BE, Stage.WAITING), job(1, BE, Stage.DECODE, device_blocks=40)
    said = of_policy(name, waiting, before, room=Room(4, 1024, 8))
    assert "KV blocks on the device" in said
    assert "host" not in said
    paused = job(2, BE, Stage.BOUNDARY, host_blocks=11)
    assert of_policy(name, paused, before, room=Room(4, 1024, 8)).startswith(
        "it is paused, its KV is on the host and BE runs on the device alone: it is expected to"
    )
    assert of_policy(name, waiting, paused, room=Room(100, 1024, 8)) == (
        "1 paused BE requests come back to the device before it"
    )


def test_a_fixed_share_is_named_with_what_is_taken_of_it():
    waiting, before = job(9, BE, Stage.WAITING), job(1, BE, Stage.DECODE, device_blocks=40)
    assert of_policy("static_headroom", waiting, before, room=Room(60, 100, 8)) == (
        "it is expected to need 20 KV blocks on the device, of the 50 that are BE's share 40 are "
        "taken"
    )


def test_work_under_way_says_what_ls_leaves_and_what_it_queues_for():
    assert "10.0 ms of an iteration, LS itself takes 20.0 ms" in why(job(1, BE, Stage.STAGED))
    queued = [job(n, BE, Stage.BOUNDARY) for n in range(3)]
    assert why(*queued, room=Room(9, 9, 2)) == "2 slots are free and 3 rows want one"
    assert why(*queued, room=Room(9, 9, 3)) == ""
    assert why(job(1, LS, Stage.DECODE)) == ""


def test_who_waits_because_ls_lacks_kv_is_told():
    short = replace(STATE, ls_lacks_kv=True)
    words = "; LS lacks device KV, and until it has it BE gets what costs LS next to nothing"
    for stage in (Stage.STAGED, Stage.PREFILL, Stage.HOPPING):
        one = job(1, BE, stage)
        assert why(one, state=short) == why(one) + words


def test_rows_that_decode_and_prompts_are_told_their_own_time():
    state = replace(STATE, prompts_s=0.0205)
    assert "0.5 ms of an iteration" in why(job(1, BE, Stage.STAGED), state=state)
    left, plan = job(1, BE, Stage.DECODE), Plan(device=(DeviceChunk(job(2, LS, Stage.DECODE), 1),))
    assert "30.0 ms of an iteration" in why(left, state=state, plan=plan)


def test_prompts_on_the_device_say_what_is_left_and_who_shares():
    ls, other = job(1, LS, Stage.PREFILL, computed=60), job(2, LS, Stage.WAITING, tokens=300)
    plan = Plan(device=(DeviceChunk(ls, 40),))
    sharing = "1 LS prompts with 300 rows share the prefill with it"
    assert why(ls, other, plan=plan) == (
        f"100 rows of its prompt are left, the last iteration was given 40; {sharing}"
    )
    be = job(3, BE, Stage.PREFILL)
    assert why(be, plan=Plan()) == (
        "160 rows of its prompt are left, the last iteration was given 0; they are computed with "
        "what LS leaves: 10.0 ms of an iteration, LS itself takes 20.0 ms"
    )
    assert why(be, state=None) == (
        "160 rows of its prompt are left; they are computed with what LS leaves"
    )


def test_rows_on_the_device_that_the_plan_went_without():
    ls, taken, left = (job(1, LS, Stage.DECODE), *(job(n, BE, Stage.DECODE) for n in (2, 3)))
    plan = Plan(device=(DeviceChunk(ls, 1), DeviceChunk(taken, 1)))
    assert why(left, ls, taken, plan=plan) == (
        "1 BE requests ran on the device beside 1 of LS, 2 want a row of the 64: "
        "30.0 ms of an iteration, LS itself takes 20.0 ms"
    )
    assert why(taken, ls, left, plan=plan) == ""
    assert why(job(9, LS, Stage.DECODE), ls, plan=plan) == (
        "1 LS requests ran before it, an iteration holds 64"
    )
    assert "on its way back" in why(job(9, LS, Stage.DECODE, held=True), plan=plan)


def test_ls_waits_for_a_row_where_all_are_taken():
    decoding = [job(n, LS, Stage.DECODE) for n in range(64)]
    assert why(job(99, LS, Stage.WAITING), *decoding) == (
        "64 LS requests decode, as many as an iteration holds; one must end first"
    )


def test_rows_in_flight_say_how_many_rejoin():
    flying = [job(n, BE, Stage.HOPPING) for n in range(3)]
    assert why(*flying, plan=Plan(join_rows=2)) == (
        "its row is between layers, with 3 in flight: the host attends, and 2 at most rejoin at "
        "each of 10 layers"
    )


def test_rows_that_could_have_a_slot_say_how_many_start():
    queued = [job(n, BE, Stage.BOUNDARY) for n in range(9)]
    started = Plan(entries=tuple(job(20 + n, BE, Stage.HOPPING) for n in range(8)))
    room = Room(9, 9, 20)
    assert why(*queued, room=room, plan=started) == (
        "9 rows want to start a token; the last iteration started 8"
    )
    assert why(*queued[:3], room=room, plan=started) == ""
    assert why(*queued[:3], room=room, plan=Plan()).endswith("started 0")


def test_every_stage_in_which_the_plan_leaves_a_job_out_has_its_words():
    for service_class in ServiceClass:
        for stage in set(Stage) - {Stage.DONE}:
            assert why(job(1, service_class, stage), plan=Plan()), (service_class, stage)


def test_who_is_held_back_waits_for_what_the_first_waits_for():
    late = Verdict(False, "the first token would take 900 ms of 400 ms")
    assert held(0, late) == f"admission holds it back: {late.reason}"
    assert held(2, late) == (
        f"admission holds it back behind 2 others; the first of them: {late.reason}"
    )
    assert held(0, ADMITTED) == "admission holds it back: the next iteration takes it"


def test_each_service_gets_the_reason_of_its_first():
    jobs = index(job(1, LS, Stage.WAITING), job(2, BE, Stage.WAITING), job(3, BE, Stage.WAITING))
    found = waits(Moment(jobs, Room(4, 5, 8), TERMS, STATE), {})
    assert set(found) == {"default/ls", "default/be"}


def test_who_queues_speaks_before_who_is_held_back_and_that_before_who_is_under_way():
    def ls(*stages):
        jobs = index(*(job(n, LS, stage) for n, stage in enumerate(stages)))
        return waits(Moment(jobs, Room(4, 5, 8), TERMS, STATE), {"default/ls": "held"})

    assert ls(Stage.PREFILL) == {"default/ls": "held"}
    assert "KV blocks" in ls(Stage.PREFILL, Stage.WAITING)["default/ls"]
