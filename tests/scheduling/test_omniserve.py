"""Deadlines, budgets and the SLO-driven policy over a known latency model."""

from dataclasses import replace
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniserve_agent.scheduling.budget import Choice, best, largest_fitting
from omniserve_agent.scheduling.deadlines import Deadlines
from omniserve_agent.scheduling.error_budget import HIGHEST, SMALLEST_SHARE, WIDEST
from omniserve_agent.scheduling.error_budgets import Objective
from omniserve_agent.scheduling.jobs import Job, JobIndex, ServiceClass, Stage, Tier
from omniserve_agent.scheduling.latency import Curve, LatencyModel, Work, pairs
from omniserve_agent.scheduling.omniserve import MIN_LS_CHUNK_ROWS, Omniserve, prompt_pairs
from omniserve_agent.scheduling.plan import Room
from omniserve_agent.scheduling.traffic import SILENT_S, Arrivals, Traffic
from support.scheduling import CAPS, LAYERS

LS, BE = ServiceClass.LS, ServiceClass.BE
# 10 ms for up to 8 rows, then 1 ms per row: 10 layers.
DENSE = Curve((1, 8, 108), (1e-3, 1e-3, 11e-3))
MODEL = LatencyModel(LAYERS, DENSE, Curve((1,), (0.0,)))
SLOPING = LatencyModel(LAYERS, Curve((1, 8, 108), (1e-3, 5e-3, 11e-3)), Curve((1,), (0.0,)))
ROOM = Room(1000, 1000, 64)


def test_first_token_is_due_at_arrival_plus_ttft_and_then_lost():
    due = Deadlines(arrival_s=10.0, ttft_s=2.0, tpot_s=0.1)
    assert due.next_s(11.0, 50, 0.01) == 12.0
    assert due.next_s(12.5, 50, 0.01) is None
    due.emitted(12.5)
    assert due.next_s(12.6, 50, 0.01) is None  # its TTFT is missed for good


def test_tokens_are_due_at_a_steady_pace_with_bounded_credit():
    due = Deadlines(arrival_s=0.0, ttft_s=2.0, tpot_s=0.1)
    due.emitted(1.0)
    assert due.next_s(1.0, 50, 0.01) == pytest.approx(1.1)
    due.emitted(1.05, tokens=9)  # far ahead: token 10 would be due at 2.0
    assert due.next_s(1.05, 40, 0.01) == pytest.approx(1.25)
    assert due.next_s(1.95, 40, 0.01) == pytest.approx(2.0)
    # Behind, but later tokens can still bring the mean down: due at once.
    assert due.next_s(2.5, 40, 0.01) == 2.5
    # Behind for good: even the fastest tokens come too late.
    assert due.next_s(2.5, 2, 0.05) is None


def test_tokens_on_their_way_are_taken_as_sent():
    due = Deadlines(arrival_s=0.0, ttft_s=2.0, tpot_s=0.1)
    due.launched(1.0)
    assert due.due_s == pytest.approx(1.1)
    due.launched(1.1)
    assert due.due_s == pytest.approx(1.2)
    due.emitted(1.05, ahead=1)  # later than was expected
    assert due.due_s == pytest.approx(1.25)
    due.emitted(1.15)
    assert due.due_s == pytest.approx(1.25)
    late = Deadlines(arrival_s=0.0, ttft_s=2.0, tpot_s=0.1)
    late.launched(1.9)
    late.emitted(2.1)
    assert late.due_s == inf


@given(st.integers(0, 50), st.integers(0, 60), st.integers(0, 60))
def test_bisection_finds_the_last_that_fits(low, span, limit):
    found = largest_fitting(low, low + span, lambda value: value <= limit)
    assert found == max(low, min(low + span, limit))


def test_slack_is_a_limit_and_never_a_target():
    """With a constant price the time is either wholly worth it or not at all."""
    idle, full = Choice(0, 1.0, 0.010), Choice(500, 501.0, 0.060)
    assert best([idle, full]) is full
    assert best([Choice(0, 500.0, 0.010), Choice(500, 550.0, 0.060)]).amount == 0
    assert best([Choice(7, 10.0, 0.010), Choice(3, 10.0, 0.010)]).amount == 3


def test_p95_of_prompts():
    seen = Traffic(1.0)
    for tokens in range(1, 101):
        seen.arrived(tokens, 1.0)
    assert seen.p95_prompt == 96


def prompt_s(tokens):
    """A token takes a millisecond."""
    return 1e-3 * tokens


def test_a_service_that_fell_silent_keeps_no_memory_beside_one_that_did_not():
    seen = Arrivals()
    for _ in range(20):
        seen.arrived("documents", 6000, 2.0, now_s=0.0)
    seen.arrived("chat", 100, 0.150, now_s=200.0)
    assert seen.together.p95_prompt == 6000
    seen.settle(0.0 + SILENT_S)
    assert seen.together.p95_prompt == 100


def test_prompts_to_come_that_nearly_fill_the_device_do_not_shut_be_out():
    policy = unspent()
    due = Deadlines(arrival_s=99.0, ttft_s=60.0, tpot_s=0.1)
    policy.arrived(job(1, LS, Stage.WAITING, tokens=14_000, deadlines=due))  # 876 blocks of 1,000
    answer = plan(decoding(2, 100.0, 0.100), job(9, BE, Stage.STAGED, tokens=500), policy=policy)
    assert be_rows(answer) > 40
    assert not policy.state.ls_lacks_kv


def test_silent_services_keep_nothing_ready():
    seen = Arrivals()
    seen.arrived("chat", 100, 0.150, now_s=10.0)
    seen.arrived("other", 10, 0.150, now_s=200.0)
    seen.settle(10.0 + SILENT_S)
    assert seen.slack_s(prompt_s) == pytest.approx(0.140)
    seen.settle(200.0 + SILENT_S)
    assert not seen
    assert seen.slack_s(prompt_s) == inf
    assert seen.together.p95_prompt == 0


def test_memory_is_kept_free_for_two_arrivals_however_many_services_there_are():
    policy = unspent()
    for number in range(20):
        due = Deadlines(arrival_s=100.0, ttft_s=1.0, tpot_s=0.1)
        seen = job(number, LS, Stage.WAITING, tokens=159, deadlines=due)
        seen.service = f"default/chat-{number}"
        policy.arrived(seen)
    most = ROOM.device_free_blocks - 2 * 10  # of 16 tokens
    fitting = job(99, BE, Stage.WAITING, tokens=16 * most - 60)
    answer = plan(fitting, policy=policy)
    assert [a.tier for a in answer.admissions] == [Tier.DEVICE]


def test_prompts_that_could_not_attain_anyway_are_nothing_to_be_ready_for():
    def after(*prompts):
        policy = unspent()
        for number, tokens in enumerate(prompts):
            due = Deadlines(arrival_s=99.0, ttft_s=0.06, tpot_s=0.1)
            policy.arrived(job(number, LS, Stage.WAITING, tokens=tokens, deadlines=due))
        return be_rows(plan(job(9, BE, Stage.STAGED, tokens=500), policy=policy))

    assert after(8, 8, 4000) == after(8, 8) == pytest.approx(60, abs=12)
    assert after(4000) == after() > 100


def test_prompts_that_attain_since_they_are_cached_are_something_to_be_ready_for():
    policy = unspent()
    due = Deadlines(arrival_s=99.0, ttft_s=0.06, tpot_s=0.1)
    found = {"found_tokens": 3984, "shared_blocks": 200}
    policy.arrived(job(1, LS, Stage.WAITING, tokens=4000, deadlines=due, **found))
    seen = policy._arrivals.together
    assert (seen.p95_prompt, seen.p95_kv) == (16, 800)


def test_pairs_of_a_cached_prompt_are_those_behind_what_is_cached():
    cached = job(1, LS, Stage.WAITING, tokens=100, found_tokens=96)
    assert prompt_pairs([cached, job(2, LS, Stage.WAITING)], 6) == pairs(96, 4) + pairs(0, 2)


def test_kv_that_ls_requests_share_counts_once():
    """30 hold 1,600 tokens each, most of them the same, of a device with 16,000."""
    jobs = JobIndex()
    for number in range(20, 50):
        one = decoding(number, 100.0, 0.100)
        one.tokens = 1600
        jobs.add(one)
    jobs.add(job(99, BE, Stage.STAGED, tokens=500))
    assert be_rows(unspent().plan(jobs, ROOM, 100.0)) < 1
    jobs.ls_device_blocks = 333
    assert be_rows(unspent().plan(jobs, ROOM, 100.0)) > 30


def job(handle, service_class, stage, tokens=100, deadlines=None, **fields):
    at_end = stage in (Stage.DECODE, Stage.BOUNDARY, Stage.HOPPING)
    return Job(
        handle=handle,
        service=f"default/{service_class.value}",
        service_class=service_class,
        priority=0,
        arrival=handle,
        tokens=tokens,
        max_total_tokens=tokens + 100,
        predicted_tokens=tokens + 50,
        computed=tokens - 1 if at_end else 0,
        stage=stage,
        device_blocks=7 if stage in (Stage.PREFILL, Stage.DECODE) else 0,
        host_blocks=7 if stage in (Stage.STAGED, Stage.BOUNDARY, Stage.HOPPING) else 0,
        deadlines=deadlines,
        **fields,
    )


def decoding(handle, now_s, tpot_s):
    """An LS row exactly on its pace: the next token is due in one TPOT."""
    due = Deadlines(arrival_s=now_s - 0.5, ttft_s=1.0, tpot_s=tpot_s)
    due.emitted(now_s)
    return job(handle, LS, Stage.DECODE, deadlines=due)


def plan(*jobs, policy=None, now_s=100.0, room=ROOM):
    index = JobIndex()
    for one in jobs:
        index.add(one)
    return (policy or unspent()).plan(index, room, now_s)


def unspent():
    """A policy whose error budget is unused: BE prompts get all of the slack."""
    policy = Omniserve(CAPS, MODEL)
    policy.error_budget.share = 1.0
    return policy


def be_rows(answer):
    return answer.prefill_row_layers / LAYERS


def test_be_prefill_gets_exactly_the_slack():
    staged = job(9, BE, Stage.STAGED, tokens=500)
    wide = plan(decoding(1, 100.0, 0.100), staged)
    # 10 ms for the decode; a chunk of r > 8 rows takes 1 + (r - 8) / 10 ms at one layer, and the
    # prompt comes in chunks of 256: 90 ms are three chunks and 124 rows, 890 row-layers.
    assert be_rows(wide) == pytest.approx(89, abs=1)
    tight = plan(decoding(1, 100.0, 0.022), staged)
    assert be_rows(tight) == pytest.approx(11, abs=1)
    none = plan(decoding(1, 100.0, 0.0105), staged)
    assert be_rows(none) == 0


def test_a_prompt_for_the_host_is_worth_what_all_who_wait_for_it_will_put_out():
    def begun(*waiting):
        residents = [job(n, BE, Stage.DECODE) for n in range(2)]
        room = Room(0, 1000, 64)  # the device is full
        answer = plan(*residents, *waiting, room=room)
        return [admission.job.handle for admission in answer.admissions]

    def waits(handle, **fields):
        return job(handle, BE, Stage.WAITING, tokens=900, **fields)

    assert begun(waits(10)) == []
    assert begun(*(waits(10 + n, prompt=7) for n in range(20))) == [10]
    computed = job(5, BE, Stage.HOPPING, tokens=900, prompt=7)
    assert begun(computed, waits(10, prompt=7)) == [10]  # it will be found
    under_way = job(5, BE, Stage.STAGED, tokens=900, prompt=7)
    same = [waits(10 + n, prompt=7) for n in range(20)]
    assert begun(under_way, *same, waits(40)) == []  # who overtakes them is judged by its own


def test_be_prefill_leaves_requests_what_they_save_for_bursts_but_be_decodes_do_not_wait():
    saved = decoding(1, 100.0, 0.020)
    saved.deadlines.emitted(100.1, tokens=30)  # due at 100.62, saving until 100.57
    due = saved.deadlines
    assert due.saving_s == pytest.approx(31 * 0.16 * 0.020)  # at most; half of it at first
    half_s = due.due_s - 0.5 * due.saving_s
    staged, resident = job(9, BE, Stage.STAGED, tokens=500), job(8, BE, Stage.DECODE)
    policy = Omniserve(CAPS, MODEL)
    behind = plan(saved, staged, resident, policy=policy, now_s=half_s)
    assert be_rows(behind) == 0
    assert [c.job.handle for c in behind.device] == [1, 8]
    assert be_rows(plan(saved, staged, resident, policy=policy, now_s=half_s - 0.035)) > 10


def test_without_be_work_nothing_is_stretched():
    answer = plan(decoding(1, 100.0, 0.100))
    assert answer.prefill_row_layers == 0
    assert [(c.job.handle, c.rows) for c in answer.device] == [(1, 1)]


def test_prompts_wait_while_rows_queue_for_a_slot():
    queued = [job(10 + i, BE, Stage.BOUNDARY) for i in range(CAPS.join_rows + 1)]
    jobs = [decoding(1, 100.0, 0.100), job(9, BE, Stage.STAGED, tokens=500), *queued]
    assert be_rows(plan(*jobs, room=Room(0, 1000, 0))) == 0
    assert be_rows(plan(*jobs, room=Room(0, 1000, 1))) > 80
    on_device = job(8, BE, Stage.PREFILL, tokens=500)  # it is for no slot that these would wait
    assert sum(c.rows for c in plan(*jobs, on_device, room=Room(5, 1000, 0)).device) > 80


def test_a_request_that_cannot_attain_sets_no_deadline():
    late = Deadlines(arrival_s=90.0, ttft_s=1.0, tpot_s=0.001)
    late.emitted(99.0)
    answer = plan(job(1, LS, Stage.DECODE, deadlines=late), job(9, BE, Stage.STAGED, tokens=500))
    assert be_rows(answer) > 88
    assert answer.device[0].job.handle == 1  # it keeps its place all the same


def test_ls_prefill_fits_what_decodes_can_make_up_for_but_never_stands_still():
    def rows_beside(tpot_s):
        waiting = job(2, LS, Stage.WAITING, tokens=500)
        planned = plan(decoding(1, 100.0, tpot_s), waiting).device
        return {chunk.job.handle: chunk.rows for chunk in planned}[2]

    # The next token is due in a TPOT, and four times 90 ms can be made up for.
    assert rows_beside(0.100) == pytest.approx(457, abs=1)
    assert rows_beside(0.0125) == pytest.approx(19, abs=1)
    assert rows_beside(0.010) == MIN_LS_CHUNK_ROWS


def test_places_that_ls_prompts_do_not_take_are_not_be_s():
    """One prompt gets the least chunk and four none: rows were priced for LS alone."""
    prompts = [job(50 + n, LS, Stage.PREFILL, tokens=300) for n in range(5)]
    residents = [job(400 + n, BE, Stage.DECODE) for n in range(8)]
    answer = plan(decoding(1, 100.0, 0.0105), *prompts, *residents)
    assert [(c.job.handle, c.rows) for c in answer.device] == [(1, 1), (50, MIN_LS_CHUNK_ROWS)]


def test_an_arrival_that_may_come_now_bounds_idle_time():
    policy = Omniserve(CAPS, MODEL)
    staged = job(9, BE, Stage.STAGED, tokens=5000)
    assert be_rows(plan(staged, policy=policy)) > 200
    # Its prompts take 102 ms; with 150 ms of TTFT, 48 ms are left for what runs before.
    seen = job(1, LS, Stage.WAITING, deadlines=Deadlines(0.0, 0.150, 0.1))
    seen.tokens = 100
    policy.arrived(seen)
    assert be_rows(plan(staged, policy=policy)) == pytest.approx(46, abs=5)


def test_predictions_are_corrected_by_what_is_observed():
    policy = Omniserve(CAPS, MODEL)
    staged = job(9, BE, Stage.STAGED, tokens=500)
    before = be_rows(plan(decoding(1, 100.0, 0.100), staged, policy=policy))
    for _ in range(300):
        work = Work(device_rows=1, joined_rows=[0.0] * LAYERS, chunk_rows=[50] * LAYERS)
        policy.observed(work, 1.5 * MODEL.predict(work))
    after = be_rows(plan(decoding(1, 100.0, 0.100), staged, policy=policy))
    assert 0 < after < 0.8 * before


def test_the_service_that_burns_its_budget_rules_until_its_window_has_passed():
    policy = Omniserve(CAPS, MODEL)
    for name, objective in (("a", Objective()), ("b", Objective(0.9, 60.0))):
        seen = job(1, LS, Stage.WAITING, deadlines=Deadlines(0.0, 1.0, 0.1), objective=objective)
        seen.service = name
        policy.arrived(seen)
    for second in range(100):
        policy.judged("a", True, float(second))
        policy.judged("b", second % 2 == 0, float(second))

    def planned(now_s):
        due = decoding(1, now_s, 0.100)
        return be_rows(plan(due, job(9, BE, Stage.STAGED, tokens=500), policy=policy, now_s=now_s))

    burning = planned(100.0)
    assert policy.state.burns == pytest.approx({"a": 0.0, "b": 5.0}, rel=0.05)
    assert policy.state.burn == policy.state.burns["b"]
    ruling = (policy.state.quantile, policy.state.widening, policy.state.slack_share)
    assert ruling == pytest.approx((HIGHEST, WIDEST, SMALLEST_SHARE))
    assert planned(158.0) == burning
    assert planned(159.0) > 5 * burning
    assert policy.state.burns == {"a": 0.0}


@pytest.mark.parametrize(
    ("tokens", "host", "lanes"), [(100, 1e-9, 8), (20_000, 0.0, 8), (20_000, 1e-9, 6)]
)
def test_rows_join_the_less_the_more_the_host_reads_for_them(tokens, host, lanes):
    """20,000 tokens are 2 MB of KV a layer: 2 ms of a budget of 22.5 ms, of which LS takes 10."""
    policy = Omniserve(CAPS, replace(MODEL, host=host), kv_bytes=1000.0)
    flying = [job(200 + i, BE, Stage.HOPPING, tokens=tokens) for i in range(16)]
    answer = plan(decoding(1, 100.0, 0.0125), *flying, policy=policy)
    assert answer.join_rows == lanes
    assert policy.state.planned_s <= policy.state.budget_s


def test_who_is_owed_a_share_gets_it_on_the_host_worth_it_or_not():
    """The device is full of LS, and a prompt for the host yields less than it costs."""

    def admitted(share):
        policy = Omniserve(CAPS, replace(MODEL, key=1e-6))
        owed = replace(job(7, BE, Stage.WAITING, tokens=900), service="default/a")
        owed.min_share_percent = share
        ls = decoding(1, 100.0, 0.100)
        ls.tokens = 15_000
        resident = job(5, BE, Stage.HOPPING)
        for one in (owed, resident):
            policy.arrived(one)
        policy.observed(Work(device_rows=1), 0.5)
        room = replace(ROOM, device_free_blocks=0)
        answer = plan(ls, resident, owed, policy=policy, room=room)
        return [one.tier for one in answer.admissions]

    assert admitted(share=0) == []
    assert admitted(share=20) == [Tier.HOST]


def test_an_iteration_holds_no_more_requests_than_the_engine_has_rows_for():
    """A prompt is one of them too: beside it one of the residents waits."""
    residents = [job(400 + n, BE, Stage.DECODE, tokens=10) for n in range(64)]
    due = Deadlines(arrival_s=100.0, ttft_s=5.0, tpot_s=0.1)
    prompt = job(1, LS, Stage.WAITING, tokens=200, deadlines=due)
    flat = LatencyModel(LAYERS, Curve((1,), (1e-3,)), Curve((1,), (0.0,)))
    answer = plan(prompt, *residents, policy=Omniserve(CAPS, flat))
    assert [c.job.handle for c in answer.device][:1] == [1]
    assert len(answer.device) == CAPS.max_device_rows
    few = Omniserve(replace(CAPS, max_device_rows=8), MODEL)
    decodes = [decoding(10 + n, 100.0, 0.1) for n in range(8)]
    assert len(plan(*decodes, prompt, policy=few).device) == 8


def test_the_pace_of_a_row_that_lost_its_first_token_binds_nobody():
    """B's prompt has the time that B's own rows leave, whatever A promised."""
    lost = decoding(1, 100.0, 0.011)
    lost.deadlines = Deadlines(arrival_s=90.0, ttft_s=1.0, tpot_s=0.011)
    lost.deadlines.emitted(100.0)
    due = Deadlines(arrival_s=100.0, ttft_s=1.0, tpot_s=0.2)
    prompt = job(3, LS, Stage.PREFILL, tokens=500, deadlines=due)
    on_pace = decoding(2, 100.0, 0.2)
    alone = plan(on_pace, prompt).device[-1].rows
    assert plan(lost, on_pace, prompt).device[-1].rows >= alone - 1
    assert alone > 5 * MIN_LS_CHUNK_ROWS


def lanes_beside(*others, free, came=0):
    """Of 16 rows in flight that are dear to join, beside an LS row with much slack; so many prompts
    of ten blocks came before."""
    policy = Omniserve(CAPS, replace(MODEL, host=1e-9), kv_bytes=1000.0)
    for number in range(came):
        due = Deadlines(arrival_s=99.0, ttft_s=5.0, tpot_s=0.1)
        policy.arrived(job(300 + number, LS, Stage.WAITING, tokens=159, deadlines=due))
    flying = [job(200 + i, BE, Stage.HOPPING, tokens=20_000) for i in range(16)]
    room = replace(ROOM, device_free_blocks=free)
    return plan(decoding(1, 100.0, 0.100), *flying, *others, policy=policy, room=room).join_rows


def test_where_ls_lacks_kv_joins_get_what_costs_next_to_nothing():
    """Longer iterations keep LS's KV taken for longer, and who waits for it waits longer."""
    due = Deadlines(arrival_s=100.0, ttft_s=5.0, tpot_s=0.1)
    waits = job(2, LS, Stage.WAITING, tokens=160, deadlines=due)
    assert lanes_beside(waits, free=11) == 8
    assert lanes_beside(waits, free=10) < 8
    assert lanes_beside(waits, job(3, BE, Stage.DECODE), free=10) == 8  # BE gives its place up


def test_kv_that_the_next_ls_prompts_would_lack_counts_as_lacking():
    assert lanes_beside(free=20, came=1) == 8
    assert lanes_beside(free=19, came=1) < 8
    assert lanes_beside(free=0) == 8  # nobody may come


def test_where_no_step_can_be_filled_as_many_join_as_fit():
    """Six would fill the step, at 1 ms each; with what LS makes up for there is time for three."""
    steps = Curve((1, 7, 8, 100), (1e-3, 1e-3, 3e-3, 3e-3))
    policy = Omniserve(CAPS, LatencyModel(LAYERS, steps, Curve((1,), (0.0,)), join=1e-3))
    flying = [job(200 + i, BE, Stage.HOPPING) for i in range(80)]
    assert plan(decoding(1, 100.0, 0.0107), *flying, policy=policy).join_rows == 3


@pytest.mark.parametrize("longest", [1, 4])
def test_rows_in_flight_keep_a_lane_whatever_they_cost(longest):
    """The tokens of a hop join together: fewer lanes would keep it, and all behind it, for ever."""
    policy = Omniserve(CAPS, replace(MODEL, host=1e-6), kv_bytes=1000.0)
    room = replace(ROOM, hop_rows=longest, longest_hop=longest)
    answer = plan(decoding(1, 100.0, 0.011), job(2, BE, Stage.HOPPING), policy=policy, room=room)
    assert answer.join_rows == longest


def moves(answer):
    return [(move.job.handle, move.to) for move in answer.moves]


def test_the_last_of_a_batch_come_back_to_an_idle_device():
    """Nobody waits and nobody is there: those on the host alone take its places."""
    answer = plan(*(job(n, BE, Stage.BOUNDARY, tokens=100 + n) for n in range(3)))
    assert moves(answer) == [(0, Tier.DEVICE), (1, Tier.DEVICE)]
    assert [c.job.handle for c in answer.device] == [0, 1]


def test_nobody_comes_to_the_device_while_residents_wait_for_a_row():
    residents = [job(400 + n, BE, Stage.DECODE) for n in range(30)]
    offloaded = job(9, BE, Stage.BOUNDARY)
    assert moves(plan(decoding(1, 100.0, 0.100), *residents, offloaded)) == [(9, Tier.DEVICE)]
    answer = plan(decoding(1, 100.0, 0.010), *residents, offloaded)
    assert not moves(answer)
    assert len(answer.device) < 30


def test_priority_decides_who_has_the_device():
    """The long request outranks the short one on the way in and on the way out."""
    long_one = job(1, BE, Stage.BOUNDARY, tokens=900)
    long_one.priority, long_one.rank = 10, (-10, 1)
    first = plan(long_one, job(2, BE, Stage.BOUNDARY), job(3, BE, Stage.BOUNDARY))
    assert moves(first)[0] == (1, Tier.DEVICE)
    long_one.stage = Stage.DECODE
    tight = replace(ROOM, device_free_blocks=0)
    answer = plan(decoding(5, 100.0, 0.100), long_one, job(2, BE, Stage.DECODE), room=tight)
    assert moves(answer) == [(2, Tier.HOST)]


def test_the_first_keeps_its_place_through_an_iteration_without_slack():
    """From the host its next token would take eleven of them."""
    policy = Omniserve(CAPS, SLOPING)
    late = decoding(1, 99.99, 0.0105)
    resident = job(2, BE, Stage.DECODE)
    answers = [plan(late, resident, policy=policy) for _ in range(LAYERS + 2)]
    assert not any(moves(answer) for answer in answers[:LAYERS])
    assert moves(answers[-1]) == [(2, Tier.HOST)]


def test_a_prompt_that_may_come_and_could_hardly_attain_does_not_stop_be():
    """On the average it takes 102 ms; with the margin it would be late on an idle device."""
    policy = unspent()
    for number in range(200):
        policy.observed(Work(device_rows=8), 0.015 if number % 10 == 0 else 0.010)
    seen = job(1, LS, Stage.WAITING, tokens=100, deadlines=Deadlines(99.0, 0.110, 0.1))
    policy.arrived(seen)
    rows = [job(400 + n, BE, Stage.DECODE) for n in range(30)]
    answer = plan(decoding(2, 100.0, 0.100), *rows, policy=policy)
    assert len(answer.device) == 31


@pytest.mark.parametrize("stage", [Stage.PREFILL, Stage.STAGED, Stage.DECODE, Stage.WAITING])
def test_an_idle_engine_always_goes_on_with_be(stage):
    """Where one token takes longer than an idle iteration may, and after a spell of bad ones."""
    slow = LatencyModel(LAYERS, Curve((1, 8, 108), (0.5, 0.5, 2.0)), Curve((1,), (0.0,)))
    policy = Omniserve(CAPS, slow)
    for _ in range(600):
        policy.observed(Work(device_rows=1), 500.0)
    jobs = JobIndex()
    jobs.add(job(1, BE, stage))
    plan = policy.plan(jobs, ROOM, 0.0)
    if stage is Stage.STAGED:
        assert plan.staged
        assert plan.prefill_row_layers > 0
    else:
        assert sum(chunk.rows for chunk in plan.device) > 0 or plan.admissions


def test_an_ls_row_without_slack_leaves_be_none():
    """The same beside LS: one row fills the iteration."""
    due = Deadlines(arrival_s=0.0, ttft_s=2.0, tpot_s=0.0101)
    due.emitted(0.0)
    row, prompt = job(1, LS, Stage.DECODE, deadlines=due), job(2, BE, Stage.PREFILL)
    answer = plan(row, prompt, policy=Omniserve(CAPS, SLOPING), now_s=0.0)
    assert [chunk.job.handle for chunk in answer.device] == [1]


STEPPED = LatencyModel(
    LAYERS, Curve((1, 16, 17, 128), (1e-3, 1e-3, 2e-3, 2e-3)), Curve((1,), (0.0,))
)


def on_the_device(ls, residents, prompt=0):
    """BE rows that a plan decodes and computes beside LS rows, all with 100 ms to go."""
    policy = Omniserve(CAPS, STEPPED)
    policy.error_budget.share = 1.0
    jobs = [decoding(n, 100.0, 0.100) for n in range(ls)]
    jobs += [job(100 + n, BE, Stage.DECODE) for n in range(residents)]
    jobs += [job(900, BE, Stage.PREFILL, tokens=prompt)] if prompt else []
    rows = [c.rows for c in plan(*jobs, policy=policy).device if c.job.service_class is BE]
    return len([n for n in rows if n == 1]), sum(n for n in rows if n > 1)


def test_be_rows_stop_at_a_step_edge_that_few_would_cross():
    assert on_the_device(ls=12, residents=6) == (4, 0)
    assert on_the_device(ls=12, residents=40) == (40, 0)
    assert on_the_device(ls=16, residents=6) == (6, 0)  # LS fills the step: there is no edge


def test_a_prompt_fills_the_step_that_be_rows_begin():
    decoded, computed = on_the_device(ls=12, residents=6, prompt=90)
    assert (decoded, computed > 60) == (6, True)


def test_no_prompt_crosses_the_edge_that_rows_stopped_at():
    assert on_the_device(ls=12, residents=6, prompt=10) == (4, 0)


def test_a_prompt_stops_at_a_step_edge_that_few_of_its_rows_would_cross():
    assert on_the_device(ls=12, residents=0, prompt=10) == (0, 4)
    assert on_the_device(ls=12, residents=0, prompt=90) == (0, 90)
