"""The fixed-caps policy: order of classes, caps, room; and who gives way when a tier is full."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniserve_agent.scheduling.exhaustion import Relief, victim, yielding_blocks
from omniserve_agent.scheduling.fixed_caps import FixedCaps
from omniserve_agent.scheduling.jobs import Job, JobIndex, ServiceClass, Stage, Tier, blocks_for
from omniserve_agent.scheduling.plan import Caps, Room

LS, BE = ServiceClass.LS, ServiceClass.BE
CAPS = Caps(
    layers=4,
    block_tokens=16,
    device_blocks=100,
    host_blocks=100,
    max_device_rows=4,
    join_rows=8,
    ls_prefill_rows=32,
    be_prefill_rows=20,
)
ROOM = Room(device_free_blocks=100, host_free_blocks=100, free_slots=16)


def job(handle, service_class=LS, stage=Stage.WAITING, tokens=10, computed=None, **fields):
    at_end = stage in (Stage.DECODE, Stage.BOUNDARY, Stage.HOPPING)
    return Job(
        handle=handle,
        service=f"default/{service_class.value}",
        service_class=service_class,
        priority=fields.pop("priority", 0),
        arrival=fields.pop("arrival", handle),
        tokens=tokens,
        max_total_tokens=tokens + 50,
        predicted_tokens=fields.pop("predicted_tokens", tokens + 20),
        computed=(tokens - 1 if at_end else 0) if computed is None else computed,
        stage=stage,
        **fields,
    )


def index(*jobs):
    made = JobIndex()
    for one in jobs:
        one.counted = (0, 0)  # it may have been in another index
        made.add(one)
    return made


def plan(*jobs, room=ROOM, **caps):
    return FixedCaps(replace(CAPS, **caps)).plan(index(*jobs), room, now_s=0.0)


def rows(answer):
    return [(chunk.job.handle, chunk.rows) for chunk in answer.device]


def test_ls_decode_comes_first_then_ls_prefill_then_be():
    answer = plan(
        job(1, BE, Stage.DECODE, device_blocks=1),
        job(2, LS, Stage.PREFILL, tokens=100, device_blocks=7),
        job(3, LS, Stage.DECODE, device_blocks=1),
    )
    assert rows(answer) == [(3, 1), (2, 32), (1, 1)]


def test_device_rows_are_capped_and_be_loses_first():
    decoding = [job(i, LS, Stage.DECODE, device_blocks=1) for i in range(4)]
    answer = plan(*decoding, job(9, BE, Stage.DECODE, device_blocks=1))
    assert [handle for handle, _ in rows(answer)] == [0, 1, 2, 3]


def test_a_prompt_is_computed_by_one_request_while_others_overtake_those_that_want_the_same():
    def admitted(*jobs):
        return [a.job.handle for a in plan(*jobs, be_device_residency=False).admissions]

    same = [job(n, BE, tokens=40, prompt=7) for n in range(3)]
    other = job(9, BE, tokens=40, prompt=8)
    assert admitted(*same, other) == [0, 9]
    under_way = job(0, BE, Stage.STAGED, tokens=40, prompt=7)
    assert admitted(under_way, *same[1:], other) == [9]
    found = job(0, BE, Stage.STAGED, tokens=40, computed=32, prompt=7)
    assert admitted(found, *same[1:], other) == [1]


def test_choices_of_an_ls_request_wait_for_the_first_to_compute_their_prompt():
    same = [job(n, LS, tokens=40, prompt=7) for n in range(3)]
    other = job(9, LS, tokens=10, prompt=8)
    many = {"ls_prefill_rows": 200}
    assert [a.job.handle for a in plan(*same, other, **many).admissions] == [0, 9]
    found = job(0, LS, Stage.PREFILL, tokens=40, computed=32, prompt=7, device_blocks=3)
    assert [a.job.handle for a in plan(found, *same[1:], **many).admissions] == [1]


def test_waiting_ls_is_admitted_in_order_and_nobody_overtakes():
    room = Room(device_free_blocks=3, host_free_blocks=100, free_slots=16)
    answer = plan(job(1, tokens=100), job(2, tokens=10), room=room)
    assert answer.admissions == ()


def test_ls_needs_neither_room_for_blocks_that_others_hold_nor_rows_for_what_is_cached():
    """Six of its seven blocks; where nobody holds them they are among those that are free."""
    room = Room(device_free_blocks=1, host_free_blocks=100, free_slots=16)
    resident = job(2, BE, Stage.DECODE, device_blocks=1)
    held = job(1, tokens=100, found_tokens=96, shared_blocks=6)
    answer = plan(held, resident, room=room)
    assert [a.job.handle for a in answer.admissions] == [1]
    assert rows(answer)[0] == (1, 4)
    assert answer.moves == ()
    idle = job(1, tokens=100, found_tokens=96)
    assert plan(idle, room=room).admissions == ()
    assert rows(plan(idle, room=replace(room, device_free_blocks=7))) == [(1, 4)]


def test_swapped_ls_resumes_before_any_waiting_ls_is_admitted():
    swapped = job(2, stage=Stage.SWAPPED, computed=9, host_blocks=1)
    assert [a.job.handle for a in plan(job(1), swapped).admissions] == [2, 1]


def test_priority_orders_inside_a_class_only():
    answer = plan(job(1, tokens=20), job(2, tokens=20, priority=5), job(3, BE, priority=100))
    assert [a.job.handle for a in answer.admissions] == [2, 1, 3]


def test_be_prefill_keeps_a_floor_beside_a_long_ls_prefill():
    staged = job(1, BE, Stage.STAGED, tokens=200, host_blocks=13)
    answer = plan(staged, job(2, LS, Stage.PREFILL, tokens=400, device_blocks=26))
    assert answer.staged == (staged,)
    assert answer.prefill_row_layers == CAPS.be_prefill_floor_rows * CAPS.layers


def test_be_goes_to_the_device_while_there_is_room_and_else_to_the_host():
    assert plan(job(1, BE)).admissions[0].tier is Tier.DEVICE
    tight = Room(device_free_blocks=13, host_free_blocks=100, free_slots=16)
    assert plan(job(1, BE), room=tight).admissions[0].tier is Tier.HOST
    assert plan(job(1, BE), be_device_residency=False).admissions[0].tier is Tier.HOST


def test_be_enters_the_host_only_if_its_predicted_kv_fits():
    tight = Room(device_free_blocks=0, host_free_blocks=6, free_slots=16)
    running = job(1, BE, Stage.BOUNDARY, tokens=16, predicted_tokens=96, host_blocks=1)
    assert plan(running, job(2, BE, predicted_tokens=48), room=tight).admissions == ()
    # The first in rank is admitted all the same: others give way to it.
    assert len(plan(job(2, BE, predicted_tokens=480), room=tight).admissions) == 1


def test_be_leaves_the_device_before_ls_needs_its_blocks():
    room = Room(device_free_blocks=2, host_free_blocks=100, free_slots=16)
    resident = [job(i, BE, Stage.DECODE, device_blocks=5, tokens=70) for i in (1, 2)]
    answer = plan(*resident, job(3, LS, tokens=90), room=room)
    assert [(m.job.handle, m.to) for m in answer.moves] == [(2, Tier.HOST)]
    assert [a.job.handle for a in answer.admissions] == [3]
    assert 2 not in [handle for handle, _ in rows(answer)]


def test_offloaded_requests_are_promoted_while_there_is_room_the_shortest_first():
    answer = plan(
        job(1, BE, Stage.BOUNDARY, tokens=300),
        job(2, BE, Stage.BOUNDARY),
        job(3, BE, Stage.BOUNDARY),
        job(4, BE, Stage.WAITING),
    )
    assert [(m.job.handle, m.to) for m in answer.moves] == [(2, Tier.DEVICE), (3, Tier.DEVICE)]
    assert [j.handle for j in answer.entries] == [1]
    assert [(c.job.handle, c.rows) for c in answer.device][:2] == [(2, 1), (3, 1)]


def test_entries_are_bounded_by_lanes_and_slots():
    waiting = [job(i, BE, Stage.BOUNDARY) for i in range(20)]
    assert len(plan(*waiting, be_device_residency=False).entries) == CAPS.join_rows
    room = Room(device_free_blocks=100, host_free_blocks=100, free_slots=3)
    assert len(plan(*waiting, room=room, be_device_residency=False).entries) == 3


def test_rows_whose_last_token_is_not_known_are_left_out_where_it_is_needed():
    answer = plan(
        job(1, LS, Stage.DECODE, held=True, device_blocks=1),
        job(2, BE, Stage.BOUNDARY, held=True),
        be_device_residency=False,
    )
    assert answer.device == answer.entries == ()


@pytest.mark.parametrize(
    ("tier", "needy", "others", "expected"),
    [
        (Tier.DEVICE, job(1, LS, Stage.DECODE, device_blocks=1), [], (1, Relief.SWAP)),
        (
            Tier.DEVICE,
            job(1, LS, Stage.DECODE, device_blocks=1),
            [job(2, LS, Stage.DECODE, device_blocks=1)],
            (2, Relief.SWAP),
        ),
        (
            Tier.DEVICE,
            job(5, LS, Stage.DECODE, device_blocks=1),
            [
                job(2, BE, Stage.DECODE, device_blocks=3, host_blocks=0),
                job(1, BE, Stage.DECODE, device_blocks=3, host_blocks=3),
            ],
            (1, Relief.DEMOTE),
        ),
        (Tier.DEVICE, job(1, BE, Stage.DECODE, device_blocks=1), [], (1, Relief.DEMOTE)),
        (  # fewest blocks to copy, not most copied
            Tier.DEVICE,
            job(5, LS, Stage.DECODE, device_blocks=1),
            [
                job(2, BE, Stage.DECODE, device_blocks=20, host_blocks=10),
                job(1, BE, Stage.DECODE, device_blocks=3, host_blocks=3),
            ],
            (1, Relief.DEMOTE),
        ),
        (  # nobody gives way to one that ranks below it
            Tier.HOST,
            job(3, BE, Stage.BOUNDARY, host_blocks=1),
            [
                job(1, BE, Stage.BOUNDARY, tokens=10, host_blocks=4),
                job(2, BE, Stage.BOUNDARY, tokens=20, host_blocks=4),
                job(4, BE, Stage.BOUNDARY, tokens=50, host_blocks=4),
            ],
            (4, Relief.RECOMPUTE),
        ),
        (  # its own copy is what it needs
            Tier.HOST,
            job(1, BE, Stage.DECODE, device_blocks=2, host_blocks=1),
            [job(2, BE, Stage.BOUNDARY, host_blocks=4)],
            (2, Relief.RECOMPUTE),
        ),
        (  # blocks of a row in flight would come too late for one that leaves the device
            Tier.HOST,
            job(1, LS, Stage.DECODE, device_blocks=2),
            [
                job(2, BE, Stage.BOUNDARY, tokens=50, host_blocks=4),
                job(3, BE, Stage.BOUNDARY, tokens=50, host_blocks=4),
                job(4, BE, Stage.HOPPING, tokens=20, host_blocks=2),
            ],
            (3, Relief.RECOMPUTE),
        ),
        (
            Tier.HOST,
            job(1, BE, Stage.BOUNDARY, host_blocks=1),
            [job(2, BE, Stage.DECODE, device_blocks=2, host_blocks=2)],
            (2, Relief.DROP_COPY),
        ),
        (
            Tier.HOST,
            job(1, BE, Stage.BOUNDARY, host_blocks=1),
            [
                job(2, BE, Stage.HOPPING, tokens=50, host_blocks=4),
                job(3, BE, Stage.BOUNDARY, tokens=20, host_blocks=2),
            ],
            (3, Relief.RECOMPUTE),
        ),
        (
            Tier.HOST,
            job(3, BE, Stage.BOUNDARY, host_blocks=1),
            [job(1, BE, Stage.BOUNDARY, tokens=50, host_blocks=4)],
            (3, Relief.RECOMPUTE),
        ),
        (
            Tier.HOST,
            job(1, BE, Stage.BOUNDARY, host_blocks=1),
            [job(2, LS, Stage.SWAPPED, host_blocks=4)],
            (2, Relief.RECOMPUTE),
        ),
    ],
)
def test_who_gives_way(tier, needy, others, expected):
    chosen = victim(index(needy, *others), tier, needy)
    assert (chosen.job.handle, chosen.relief) == expected


def test_a_newcomer_preempts_nobody_who_ranks_above_it():
    running = [job(1, LS, Stage.DECODE, device_blocks=4), job(3, LS, Stage.DECODE, device_blocks=4)]
    assert victim(index(*running, job(4)), Tier.DEVICE, job(4)) is None
    chosen = victim(index(*running, job(2)), Tier.DEVICE, job(2))
    assert (chosen.job.handle, chosen.relief) == (3, Relief.SWAP)


def test_blocks_that_others_would_yield():
    first = job(1, BE, Stage.BOUNDARY, host_blocks=1)
    others = [
        job(2, BE, Stage.DECODE, device_blocks=2, host_blocks=2),
        job(3, BE, Stage.BOUNDARY, host_blocks=4),
        job(4, BE, Stage.HOPPING, host_blocks=8),
        job(5, LS, Stage.SWAPPED, host_blocks=16),
    ]
    leaving = job(6, LS, Stage.DECODE, device_blocks=3)
    jobs = index(first, *others, leaving)
    assert yielding_blocks(jobs, first) == 2 + 4 + 8 + 16
    assert yielding_blocks(jobs, leaving) == 2 + 4
    assert yielding_blocks(jobs, others[1]) == 2 + 8


def test_ls_on_every_row_sends_the_first_be_to_the_host():
    decoding = [job(i, LS, Stage.DECODE, device_blocks=1) for i in range(4)]
    resident = [job(i, BE, Stage.DECODE, device_blocks=1) for i in (8, 9)]
    assert [m.job.handle for m in plan(*decoding, *resident).moves] == [8]
    assert plan(*decoding[:3], *resident).moves == ()
    assert plan(*decoding, job(8, BE)).admissions[0].tier is Tier.HOST


def test_nobody_can_give_way_when_only_the_first_holds_the_host():
    first = job(1, BE, Stage.BOUNDARY, host_blocks=4)
    assert victim(index(first), Tier.HOST, first) is None


STAGES = st.sampled_from([s for s in Stage if s is not Stage.DONE])


@st.composite
def states(draw):
    jobs = []
    for handle in range(draw(st.integers(0, 12))):
        service_class = draw(st.sampled_from([LS, BE]))
        allowed = {
            LS: [Stage.WAITING, Stage.SWAPPED, Stage.PREFILL, Stage.DECODE],
            BE: [s for s in Stage if s not in (Stage.SWAPPED, Stage.DONE)],
        }[service_class]
        stage = draw(st.sampled_from(allowed))
        tokens = draw(st.integers(2, 120))
        computed = {Stage.PREFILL: 0, Stage.STAGED: 0, Stage.WAITING: 0}.get(stage, tokens - 1)
        held = blocks_for(tokens, 16)
        jobs.append(
            job(
                handle,
                service_class,
                stage,
                tokens,
                computed,
                priority=draw(st.integers(-2, 2)),
                device_blocks=held if stage in (Stage.PREFILL, Stage.DECODE) else 0,
                host_blocks=held if stage in (Stage.BOUNDARY, Stage.HOPPING, Stage.STAGED) else 0,
            )
        )
    room = Room(
        draw(st.integers(0, 100)), draw(st.integers(0, 100)), free_slots=draw(st.integers(0, 16))
    )
    return jobs, room


@given(states())
def test_any_plan_keeps_the_caps_and_is_deterministic(drawn):
    jobs, room = drawn
    answer = plan(*jobs, room=room)
    assert answer == plan(*jobs, room=room)
    assert len(answer.device) <= CAPS.max_device_rows
    prefill = sum(c.rows for c in answer.device if c.job.service_class is LS and c.rows > 1)
    assert prefill <= CAPS.ls_prefill_rows
    assert len(answer.entries) <= min(CAPS.join_rows, room.free_slots)
    handles = [c.job.handle for c in answer.device]
    assert len(handles) == len(set(handles))
    freed = sum(m.job.device_blocks for m in answer.moves if m.to is Tier.HOST)
    admitted = [a.job for a in answer.admissions if a.tier is Tier.DEVICE]
    assert sum(blocks_for(j.tokens + 1, 16) for j in admitted) <= room.device_free_blocks + freed


@given(states())
def test_ls_rows_do_not_depend_on_be(drawn):
    """LS is never starved by BE: with more room than anybody needs, BE changes no LS row."""
    jobs, _ = drawn
    room = Room(10_000, 10_000, 16)
    with_be = plan(*jobs, room=room)
    alone = plan(*(j for j in jobs if j.service_class is LS), room=room)
    ls_rows = [(c.job.handle, c.rows) for c in with_be.device if c.job.service_class is LS]
    assert ls_rows == rows(alone)


def test_device_and_staged_be_prefill_share_one_allowance():
    staged = job(1, BE, Stage.STAGED, tokens=200, host_blocks=13)
    answer = plan(staged, job(2, BE, Stage.PREFILL, tokens=200, device_blocks=13))
    on_device = sum(chunk.rows for chunk in answer.device)
    assert on_device == CAPS.be_prefill_rows - CAPS.be_prefill_rows // 4
    assert on_device * CAPS.layers + answer.prefill_row_layers == (
        CAPS.be_prefill_rows * CAPS.layers
    )
