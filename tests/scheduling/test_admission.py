"""Admission by projection: only load refuses, and more load never lets more in."""

from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from omniserve_agent.scheduling.admission import AdmissionMode, Gate, Open
from omniserve_agent.scheduling.costs import Costs
from omniserve_agent.scheduling.deadlines import Deadlines
from omniserve_agent.scheduling.error_budgets import ErrorBudgets
from omniserve_agent.scheduling.held_back import HeldBack
from omniserve_agent.scheduling.jobs import Job, JobIndex, ServiceClass, Stage
from omniserve_agent.scheduling.latency import Correction, Curve, LatencyModel
from omniserve_agent.scheduling.plan import Caps
from omniserve_agent.scheduling.retry import LEAST_RETRY_S, course

LS = ServiceClass.LS
NOW_S = 100.0
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


def gate(mode=AdmissionMode.REJECT, caps=CAPS):
    return Gate(Costs(MODEL, Correction(), ErrorBudgets()), caps, mode)


def job(
    handle, stage=Stage.WAITING, tokens=50, ttft_s=1.0, tpot_s=0.1, arrival_s=NOW_S, priority=0
):
    due = Deadlines(arrival_s, ttft_s, tpot_s)
    if stage is Stage.DECODE:
        due.emitted(NOW_S)
    return Job(
        handle=handle,
        service="default/chat",
        service_class=LS,
        priority=priority,
        arrival=handle,
        tokens=tokens,
        max_total_tokens=tokens + 200,
        predicted_tokens=tokens + 100,
        computed=tokens - 1 if stage is Stage.DECODE else 0,
        stage=stage,
        deadlines=due,
    )


def index(*jobs):
    made = JobIndex()
    for one in jobs:
        made.add(one)
    return made


def test_an_idle_engine_admits_and_an_open_door_always_does():
    assert gate().judge(index(), job(1), NOW_S).admitted
    crowd = index(*(job(n, tokens=500) for n in range(60)))
    assert not gate().judge(crowd, job(99), NOW_S).admitted
    assert Open().judge(crowd, job(99), NOW_S).admitted
    assert gate(AdmissionMode.OFF).judge(crowd, job(99), NOW_S).admitted


def test_a_backlog_of_prompts_refuses_with_a_prediction():
    # Chunks of 98 rows keep a pace of 100 ms: 1,000 rows before it take over a second.
    crowd = index(*(job(n, tokens=100) for n in range(10)))
    verdict = gate().judge(crowd, job(99), NOW_S)
    assert not verdict.admitted
    assert "first token" in verdict.reason
    assert gate().retry_s(crowd, job(99), NOW_S) == LEAST_RETRY_S


def test_what_refuses_longest_decides_when_to_try_again():
    """First tokens are late for a second, and KV that lacks is freed when nine requests end."""
    decoding = [job(n, Stage.DECODE, tokens=1500, tpot_s=1.0) for n in range(9)]
    crowd = index(*decoding, *(job(10 + n, tokens=100) for n in range(10)))
    assert "first token" in gate().judge(crowd, job(99), NOW_S).reason
    # 100 tokens are left of each, at a pace of 100 ms while prompts are computed, then of 21 ms.
    assert 2.5 < gate().retry_s(crowd, job(99), NOW_S) < 4.5


def test_a_pace_that_cannot_be_kept_refuses():
    decoding = [job(n, Stage.DECODE, tpot_s=0.03) for n in range(30)]  # 32 ms with one more
    verdict = gate().judge(index(*decoding), job(99, tpot_s=0.03), NOW_S)
    assert "the token would take" in verdict.reason


def test_memory_that_lacks_refuses_with_figures():
    decoding = [job(n, Stage.DECODE, tokens=1500, tpot_s=1.0) for n in range(10)]
    verdict = gate().judge(index(*decoding), job(99, tpot_s=1.0), NOW_S)
    assert "16000 that fit the device" in verdict.reason


def test_kv_that_several_hold_counts_once():
    crowd = index(*(job(n, Stage.DECODE, tokens=1500, tpot_s=1.0) for n in range(10)))
    crowd.ls_device_blocks = 200
    assert gate().judge(crowd, job(99, tpot_s=1.0), NOW_S).admitted
    crowd.ls_device_blocks = 950
    assert not gate().judge(crowd, job(99, tpot_s=1.0), NOW_S).admitted


def test_a_newcomer_adds_no_kv_that_others_hold():
    crowd = index(*(job(n, Stage.DECODE, tokens=1500, tpot_s=1.0) for n in range(9)))
    newcomer = job(99, tokens=1500, ttft_s=10.0, tpot_s=1.0)
    assert not gate().judge(crowd, newcomer, NOW_S).admitted
    newcomer = replace(newcomer, found_tokens=1488)
    assert not gate().judge(crowd, newcomer, NOW_S).admitted  # it comes out of what is free
    assert gate().judge(crowd, replace(newcomer, shared_blocks=93), NOW_S).admitted


def test_what_is_left_of_a_cached_prompt_after_a_while():
    """Of 96 rows in 0.1 s, three quarters of the time are counted on."""
    waiting = replace(job(1, tokens=1600), found_tokens=1504, shared_blocks=94)
    decoding = replace(job(2, Stage.DECODE, tokens=1600, tpot_s=1.0), device_blocks=101)
    jobs = index(waiting, decoding)
    jobs.ls_device_blocks = 101
    ahead = course(jobs, gate().project(jobs, NOW_S), [waiting])
    soon, later = ahead.left(0.1), ahead.left(1.0)
    assert 20 < soon.at(LS, Stage.WAITING)[0].remaining < 45
    assert later.count(LS, Stage.DECODE) == 2
    assert 101 + 7 <= later.ls_device_blocks < 101 + 20


HOPELESS = {"tokens": 3000}  # three seconds of prompt for a TTFT of one


def test_a_request_that_would_miss_on_an_idle_engine_too_is_taken_where_nobody_misses_for_it():
    assert gate().hopeless(job(99, **HOPELESS))
    assert gate().judge(index(), job(99, **HOPELESS), NOW_S).admitted
    crowd = index(*(job(n, tokens=100) for n in range(10)))
    assert gate().judge(crowd, job(99, **HOPELESS), NOW_S).admitted


def test_a_request_is_judged_by_what_is_left_to_compute():
    cached = replace(job(99, **HOPELESS), found_tokens=2992)
    assert not gate().hopeless(cached)
    assert gate(AdmissionMode.QUEUE).lost(job(99, **HOPELESS), NOW_S)
    assert not gate(AdmissionMode.QUEUE).lost(cached, NOW_S)
    crowd = [job(n, tokens=500) for n in range(10)]
    assert not gate().judge(index(*crowd), job(99), NOW_S).admitted
    for one in crowd:
        one.found_tokens = 496
    assert gate().judge(index(*crowd), job(99), NOW_S).admitted


def test_it_is_refused_where_an_admitted_one_would_miss_for_it():
    waiting = index(job(1, tokens=100))
    ahead = job(99, **HOPELESS, priority=5)
    why = gate().judge(waiting, ahead, NOW_S).reason
    assert why.startswith("the first token of an admitted request would take")
    decoding = index(*(job(n, Stage.DECODE, tpot_s=0.03) for n in range(30)))
    why = gate().judge(decoding, job(99, **HOPELESS, tpot_s=0.001), NOW_S).reason
    assert why.startswith("the token would take 33 ms, more than 90% of the 30 ms left")
    decoding = index(*(job(n, Stage.DECODE, tokens=1200, tpot_s=1.0) for n in range(10)))
    assert "that fit the device" in gate().judge(decoding, job(99, **HOPELESS), NOW_S).reason
    assert gate().judge(index(), job(99, tokens=15_000, ttft_s=1e3), NOW_S).admitted


def test_a_pace_that_no_idle_engine_keeps_holds_nobody_up():
    for stage in (Stage.DECODE, Stage.WAITING):
        there = index(job(1, stage, tpot_s=0.009))  # an iteration takes 10 ms
        assert gate().judge(there, job(2, tokens=300), NOW_S).admitted


def test_an_admitted_prompt_that_is_due_later_is_not_pushed_out():
    waiting = job(1, tokens=400, ttft_s=0.5)
    urgent = job(2, tokens=100, ttft_s=0.2)
    assert gate().judge(index(), urgent, NOW_S).admitted
    assert not gate().judge(index(waiting), urgent, NOW_S).admitted


def test_one_that_goes_before_by_priority_does_not_push_out_an_admitted_prompt():
    """The policy orders by priority before laxity: the one that is due earlier comes second."""
    waiting = job(1, tokens=60, ttft_s=0.1)
    urgent = job(2, tokens=59, ttft_s=0.16, priority=10)
    assert gate().judge(index(), waiting, NOW_S).admitted
    assert gate().judge(index(), urgent, NOW_S).admitted
    assert not gate().judge(index(waiting), urgent, NOW_S).admitted


def test_one_that_is_due_earlier_waits_for_those_of_higher_priority():
    crowd = [job(n, tokens=100, ttft_s=10.0, priority=1) for n in range(10)]
    assert not gate().judge(index(*crowd), job(99), NOW_S).admitted
    assert gate().judge(index(*crowd), job(99, priority=1), NOW_S).admitted


def test_policies_without_laxity_are_projected_in_the_order_of_rank():
    waiting, newcomer = job(1, tokens=400, ttft_s=0.5), job(2, tokens=100, ttft_s=0.45)
    by_rank = replace(gate(), by_laxity=False)
    assert not by_rank.judge(index(waiting), newcomer, NOW_S).admitted
    assert by_rank.judge(index(waiting), job(2, tokens=100, ttft_s=0.7), NOW_S).admitted


def test_a_prompt_that_is_lost_gives_way():
    lost = job(1, tokens=400, arrival_s=NOW_S - 0.9)  # 100 ms left for a prompt of over 400
    assert gate().judge(index(lost), job(2, tokens=400), NOW_S).admitted


def test_choices_of_one_prompt_are_charged_for_it_once():
    """`n`, and batches over one document: a last block each is all that the others compute."""
    others = [job(n, tokens=100) for n in range(10)]
    assert not gate().judge(index(*others), job(99, tokens=100), NOW_S).admitted
    for one in others:
        one.prompt = 7
    newcomer = job(99, tokens=100)
    newcomer.prompt = 7
    assert gate().judge(index(*others), newcomer, NOW_S).admitted


def test_a_prompt_that_waits_will_have_its_pace():
    waiting = job(1, tpot_s=0.02)
    decoding = [job(n, Stage.DECODE, tpot_s=1.0) for n in range(10, 26)]  # 20 ms with both
    verdict = gate().judge(index(waiting, *decoding), job(2, tpot_s=1.0), NOW_S)
    assert "the token would take 20 ms, more than 90% of the 20 ms" in verdict.reason
    assert gate().judge(index(job(1), *decoding), job(2, tpot_s=1.0), NOW_S).admitted


def test_who_finds_no_row_waits_for_others_to_end():
    """Ends come as often as the requests that have a row are long on the average; then its prompt
    is computed."""
    few = replace(CAPS, max_device_rows=4)
    going = [job(n, Stage.DECODE) for n in range(10, 14)]  # 100 tokens of 10 ms left of each
    assert gate(caps=few).judge(index(*going), job(1, ttft_s=0.4), NOW_S).admitted
    verdict = gate(caps=few).judge(index(*going), job(1, ttft_s=0.2), NOW_S)
    assert "the first token would take 306 ms" in verdict.reason  # 250, and the prompt


def test_who_has_outlived_its_prediction_goes_on_for_as_long_again():
    few = replace(CAPS, max_device_rows=4)
    going = [job(n, Stage.DECODE, tokens=250) for n in range(10, 14)]
    for one in going:  # 200 tokens of output, of which 100 were expected
        one.prompt_tokens, one.predicted_tokens, one.max_total_tokens = 50, 150, 2000
    verdict = gate(caps=few).judge(index(*going), job(1, ttft_s=0.4), NOW_S)
    assert "the first token would take 556 ms" in verdict.reason
    for one in going:
        one.max_total_tokens = 251
    assert gate(caps=few).judge(index(*going), job(1, ttft_s=0.4), NOW_S).admitted


def test_the_reason_names_the_limit_that_was_used():
    verdict = gate().judge(index(*(job(n, tokens=88) for n in range(10))), job(99), NOW_S)
    assert "more than 90% of the 1000 ms left" in verdict.reason


# Steps, so that a smaller chunk may be the cheaper one: 1 ms a layer up to 32 rows, then 2 ms.
STEPS = LatencyModel(
    10, Curve((1, 32, 33, 64, 65, 512), (1e-3, 1e-3, 2e-3, 2e-3, 4e-3, 3e-2)), Curve((1,), (0.0,))
)
TIGHT = replace(CAPS, device_blocks=120, max_device_rows=8, ls_prefill_rows=256)
STAGES = (Stage.DECODE, Stage.WAITING, Stage.PREFILL, Stage.SWAPPED)


def random_job(stages=STAGES):
    """TTFT 0.1 to 10 s, of which some or all may have passed; TPOT 20 ms to 1 s."""
    return st.builds(
        lambda handle, stage, tokens, ttft_s, tpot_s, waited_s, priority, left: replace(
            job(handle, stage, tokens, ttft_s, tpot_s, NOW_S - waited_s * ttft_s, priority),
            predicted_tokens=tokens + left,
        ),
        st.integers(1, 10**9),
        st.sampled_from(stages),
        st.integers(1, 400),
        st.floats(0.1, 10.0),
        st.floats(0.02, 1.0),
        st.floats(0.0, 1.2),
        st.sampled_from((0, 0, 0, 5)),
        st.integers(1, 200),
    )


def random_gate():
    models, caps = st.sampled_from((MODEL, STEPS)), st.sampled_from((CAPS, TIGHT))
    return st.builds(
        lambda model, caps, by_laxity: Gate(
            Costs(model, Correction(), ErrorBudgets()), caps, by_laxity=by_laxity
        ),
        models,
        caps,
        st.booleans(),
    )


def in_time(judge, jobs):
    """Handles of the prompts that are projected to be in time."""
    seen = judge.project(jobs, NOW_S)
    order = judge.order(seen.prompts, NOW_S)
    found = seen.first_tokens(order)
    return {one.handle for one, first in zip(order, found, strict=True) if first.in_time}


@settings(max_examples=300)
@given(
    random_gate(),
    st.lists(random_job(), max_size=14, unique_by=lambda one: one.handle),
    random_job((Stage.WAITING,)),
    random_job(),
)
def test_more_load_lets_nobody_in_unless_it_makes_an_admitted_prompt_late(judge, jobs, new, more):
    """A prompt that will be late anyway sets no deadline, so that nobody is refused for it: load
    that makes one late can let others in. Load that leaves all in time that were never does."""
    assume(len({one.handle for one in (*jobs, new, more)}) == len(jobs) + 2)
    fewer, all_of_them = index(*jobs), index(*jobs, more)
    kept = in_time(judge, fewer) <= in_time(judge, all_of_them)
    if kept and judge.judge(all_of_them, new, NOW_S).admitted:
        assert judge.judge(fewer, new, NOW_S).admitted


@settings(max_examples=300)
@given(
    random_gate(),
    st.lists(random_job(), max_size=14, unique_by=lambda one: one.handle),
    random_job((Stage.WAITING,)),
    random_job((Stage.WAITING,)),
)
def test_whom_the_gate_let_in_lets_nobody_in(judge, jobs, new, let_in):
    """Its own admissions are such load."""
    assume(len({one.handle for one in (*jobs, new, let_in)}) == len(jobs) + 2)
    fewer = index(*jobs)
    assume(judge.judge(fewer, let_in, NOW_S).admitted)
    if judge.judge(index(*jobs, let_in), new, NOW_S).admitted:
        assert judge.judge(fewer, new, NOW_S).admitted


def test_a_prompt_that_more_load_makes_late_is_no_longer_in_the_way():
    """What the property excepts."""
    waiting = job(1, tokens=300, ttft_s=0.5)  # 302 ms on its own
    newcomer = job(2, tokens=200, ttft_s=0.35)
    assert not gate().judge(index(waiting), newcomer, NOW_S).admitted
    decoding = [job(n, Stage.DECODE, tpot_s=0.04, tokens=9) for n in range(10, 34)]
    assert in_time(gate(), index(waiting, *decoding)) == set()


def test_those_held_back_keep_their_order_and_the_lost_come_last():
    held = HeldBack[Job](gate(AdmissionMode.QUEUE), lambda one: one)
    crowd = [job(n, tokens=100) for n in range(10)]
    for number in (20, 21):
        held.add(job(number, tokens=80, ttft_s=1.1))
    assert list(held.ready(index(*crowd), NOW_S)) == []
    jobs, taken = index(), []
    for one in held.ready(jobs, NOW_S):
        jobs.add(one)
        taken.append(one.handle)
    assert taken == [20, 21]

    for number, arrival_s in ((30, NOW_S - 2.0), (31, NOW_S)):  # 30 has missed its TTFT
        held.add(job(number, arrival_s=arrival_s))
    assert [one.handle for one in held.ready(index(), NOW_S)] == [31, 30]
    assert len(held) == 0


def test_one_held_back_can_be_forgotten():
    held = HeldBack[Job](gate(AdmissionMode.QUEUE), lambda one: one)
    held.add(job(1))
    assert held.remove(lambda one: one.handle == 1)
    assert not held.remove(lambda one: one.handle == 1)


def test_one_that_has_lost_on_an_idle_engine_disturbs_nobody():
    """Nothing else brings it on: it would hold up whoever has lost after it."""
    late = job(1, tokens=15_000, ttft_s=20.0, arrival_s=NOW_S - 10.0)
    queue = gate(AdmissionMode.QUEUE)
    assert queue.lost(late, NOW_S)
    assert queue.judge(index(), late, NOW_S).admitted
    assert not queue.judge(index(job(2, Stage.DECODE)), late, NOW_S).admitted


@pytest.mark.parametrize(
    "unfit", [{"tokens": 950}, {"tpot_s": 0.009}, {"tokens": 15_000, "ttft_s": 1e3}]
)
def test_one_that_an_idle_engine_would_not_serve_in_time_holds_up_nobody(unfit):
    """950 tokens take 952 ms of its second, of which no more than 900 are counted on."""
    held = HeldBack[Job](gate(AdmissionMode.QUEUE), lambda one: one)
    jobs = index(job(1, Stage.DECODE), job(2, tokens=800))
    for one in (job(30, **unfit), job(31)):
        assert not held.judge(jobs, one, NOW_S).admitted
        held.add(one)
    taken = [one.handle for one in held.ready(index(job(1, Stage.DECODE)), NOW_S)]
    taken += [one.handle for one in held.ready(index(), NOW_S)]
    assert taken == [31, 30]


def test_a_full_line_has_room_when_its_first_leaves():
    queue = gate(AdmissionMode.QUEUE)
    held = HeldBack[Job](queue, lambda one: one)
    crowd = index(*(job(n, tokens=400, ttft_s=9.0, priority=1) for n in range(10)))
    first, short = job(20, tokens=400, ttft_s=2.0), job(21, tokens=9, ttft_s=9.0)
    held.add(first)
    assert held.retry_s(crowd, short, NOW_S) == pytest.approx(queue.retry_s(crowd, first, NOW_S))
    assert queue.retry_s(crowd, first, NOW_S) > LEAST_RETRY_S == queue.retry_s(crowd, short, NOW_S)


ARRIVALS = st.lists(
    st.tuples(st.integers(1, 1200), st.floats(0.05, 3.0), st.floats(0.0, 0.4), st.booleans()),
    max_size=40,
)


@given(ARRIVALS)
def test_first_come_first_served(arrivals):
    """Among those that can still attain, and among those that have lost; none stays for ever."""
    held = HeldBack[Job](gate(AdmissionMode.QUEUE), lambda one: one)
    jobs, running, now_s = index(), [], NOW_S

    def take(one):
        lost = held.gate.lost(one, now_s)
        like = [other for other in held if held.gate.lost(other, now_s) == lost]
        assert all(one.handle < other.handle for other in like)
        jobs.add(one)
        running.append(one)

    for handle, (tokens, ttft_s, waited_s, ends) in enumerate(arrivals):
        now_s += waited_s
        if ends and running:
            jobs.move(running.pop(0), Stage.DONE)
        for one in held.ready(jobs, now_s):
            take(one)
        new = job(handle, tokens=tokens, ttft_s=ttft_s, arrival_s=now_s)
        if held.judge(jobs, new, now_s).admitted:
            take(new)
        else:
            held.add(new)
    for _ in range(3 * len(arrivals) + 5):  # a head that fits nowhere loses its TTFT meanwhile
        if running:
            jobs.move(running.pop(0), Stage.DONE)
        now_s += 1.0
        for one in held.ready(jobs, now_s):
            take(one)
    assert len(held) == 0


def test_refusals_of_a_kind_are_projected_once_a_second(monkeypatch):
    door = gate()
    asked, project = [], type(door).retry_s

    def counted(self, jobs, refused, now_s):
        asked.append(refused.handle)
        return project(self, jobs, refused, now_s)

    monkeypatch.setattr(type(door), "retry_s", counted)
    held = HeldBack[Job](door, lambda one: one)
    crowd = index(*(job(n, tokens=400, ttft_s=9.0, priority=1) for n in range(10)))
    first = held.retry_s(crowd, job(20, tokens=400), NOW_S)
    assert held.retry_s(crowd, job(21, tokens=420), NOW_S + 0.5) == pytest.approx(first - 0.5)
    held.retry_s(crowd, job(22, tokens=90), NOW_S + 0.5)
    assert asked == [20, 22]
    held.retry_s(crowd, job(23, tokens=400), NOW_S + 1.0)
    assert asked == [20, 22, 23]
    assert held.retry_s(index(), job(24, tokens=500), NOW_S + 1.5) >= LEAST_RETRY_S
