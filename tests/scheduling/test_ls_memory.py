"""What LS prompts may take of the device, and when LS lacks KV there."""

import pytest

from omniserve_agent.scheduling.jobs import Job, JobIndex, ServiceClass, Stage
from omniserve_agent.scheduling.ls_memory import Wanted, arrival_blocks, wanted
from omniserve_agent.scheduling.plan import Room
from omniserve_agent.scheduling.traffic import Arrivals
from support.scheduling import CAPS

LS, BE = ServiceClass.LS, ServiceClass.BE


def job(handle, stage, tokens=159, service_class=LS, **more):
    """159 tokens and the next are ten blocks."""
    return Job(
        handle=handle,
        service="default/x",
        service_class=service_class,
        priority=0,
        arrival=handle,
        tokens=tokens,
        max_total_tokens=tokens + 100,
        predicted_tokens=tokens + 50,
        stage=stage,
        **more,
    )


def wants(*jobs, free, kept=0):
    index = JobIndex()
    for one in jobs:
        index.add(one)
    order = [one for one in jobs if one.stage in (Stage.PREFILL, Stage.WAITING)]
    return wanted(index, Room(free, 1000, 64), order, CAPS, kept)


def test_prompts_get_rows_as_far_as_there_is_room():
    two = job(1, Stage.WAITING), job(2, Stage.WAITING)
    assert wants(*two, free=20) == Wanted(318, short=False)
    assert wants(*two, free=19) == Wanted(159, short=True)
    resident = job(3, Stage.DECODE, service_class=BE, device_blocks=1)
    assert wants(*two, resident, free=19) == Wanted(318, short=False)
    assert wants(*two, free=25, kept=6) == Wanted(318, short=True)


def test_who_is_swapped_out_comes_first_and_lacks_blocks_too():
    out = job(1, Stage.SWAPPED)
    assert wants(out, free=10) == Wanted(1, short=False)
    assert wants(out, free=9) == Wanted(1, short=True)
    assert wants(out, job(2, Stage.WAITING), free=19) == Wanted(1, short=True)


def test_all_that_wait_are_looked_at_however_many_rows_one_has_left():
    long = job(1, Stage.PREFILL, tokens=2000)
    assert wants(long, job(2, Stage.WAITING), free=9) == Wanted(CAPS.ls_prefill_rows, short=True)


@pytest.mark.parametrize("first", [Stage.WAITING, Stage.PREFILL])
def test_copies_of_a_prompt_lack_nothing(first):
    """It is computed once, and found by the others."""
    copies = [job(1, first, prompt=7), *(job(2 + n, Stage.WAITING, prompt=7) for n in range(7))]
    assert wants(*copies, free=10) == Wanted(159, short=False)


def test_two_prompts_to_come_are_reckoned_with_as_far_as_the_device_holds_three():
    seen = Arrivals()
    assert arrival_blocks(seen, CAPS) == 0
    seen.arrived("chat", 159, 1.0, 0.0)
    assert arrival_blocks(seen, CAPS) == 20
    seen.arrived("chat", 16 * 400, 1.0, 0.0)
    assert arrival_blocks(seen, CAPS) == CAPS.device_blocks - 401
    seen.arrived("chat", 16 * 1200, 1.0, 0.0)
    assert arrival_blocks(seen, CAPS) == 0


def test_blocks_that_others_hold_are_not_wanted_once_more():
    """Nine of its ten; in the cache alone they count among those that are free."""
    held = job(1, Stage.WAITING, found_tokens=144, shared_blocks=9)
    assert wants(held, free=1) == Wanted(15, short=False)
    assert wants(held, free=0) == Wanted(0, short=True)
    idle = job(1, Stage.WAITING, found_tokens=144)
    assert wants(idle, free=10) == Wanted(15, short=False)
    assert wants(idle, free=9) == Wanted(0, short=True)


def test_prompts_to_come_are_reckoned_with_by_the_kv_that_they_add():
    seen = Arrivals()
    seen.arrived("chat", 15, 1.0, 0.0, kv_tokens=31)
    assert arrival_blocks(seen, CAPS) == 4
    seen.arrived("chat", 15, 1.0, 0.0, kv_tokens=159)
    assert arrival_blocks(seen, CAPS) == 20
    assert seen.together.p95_prompt == 15
