"""The loop, the block managers and the policy together, over an executor whose KV is token ids."""

from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from omniserve_agent.engine.drafts import NoDrafts
from omniserve_agent.engine.intake import DELIVERY_JITTER
from omniserve_agent.engine.messages import SamplingParams, ServiceClass
from omniserve_agent.scheduling.jobs import Stage
from support.fake_engine import (
    GREEDY,
    Collector,
    check_consistent,
    check_no_leak,
    make_engine,
    run,
    state,
    submit,
)
from support.fake_executor import continuation

PENALISED = SamplingParams(temperature=0.0, presence_penalty=0.5)


class ScriptedDrafts(NoDrafts):
    """Guesses right for `right` tokens, then wrong ones."""

    def __init__(self, right, wrong):
        self.right, self.wrong = right, wrong

    def propose(self, handle, tokens, longest):
        guesses = continuation(tokens, self.right) + [96] * self.wrong
        return guesses[:longest]


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("residency", [True, False])
def test_each_class_alone_and_mixed(depth, residency):
    engine = make_engine(depth=depth, be_device_residency=residency)
    prompts = {f"LS{i}": [i + 1] * (3 + 4 * i) for i in range(3)}
    prompts |= {f"BE{i}": [i + 40] * (5 + 3 * i) for i in range(3)}
    for name, prompt in prompts.items():
        assert engine.submit(submit(name, prompt, name[:2], max_tokens=9)) is None
    got = run(engine)
    for name, prompt in prompts.items():
        assert got.tokens[name] == continuation(prompt, 9), name
        assert got.finished[name] == "length"
    check_no_leak(engine)


def test_without_residency_be_attention_runs_on_the_host_only():
    engine = make_engine(be_device_residency=False)
    engine.submit(submit("be", range(1, 10), "BE", max_tokens=6))
    run(engine)
    # 5 tokens after the prefill's, each one row through 3 layers on the host.
    assert engine.executor.host_rows == 5 * 3
    assert engine.counts.device_rows[ServiceClass.BE] == 9  # the prefill


def test_gate_ls_goes_on_while_host_attention_stands_still():
    engine = make_engine(be_device_residency=False)
    for i in range(3):
        engine.submit(submit(f"be{i}", [i + 1] * 6, "BE", max_tokens=8))
    collector = Collector()
    while engine.jobs.count(ServiceClass.BE, Stage.HOPPING) != 3:
        collector.take(engine.step())
    be_tokens = {k: len(v) for k, v in collector.tokens.items()}
    engine.executor.gate_open = False
    # What had completed may still join; nothing new does.
    engine.submit(submit("ls", [7] * 5, "LS", max_tokens=20))
    for _ in range(60):
        collector.take(engine.step())
    assert collector.finished.get("ls") == "length"
    stuck = {k: len(v) for k, v in collector.tokens.items() if k != "ls"}
    assert all(stuck[k] - be_tokens[k] <= 1 for k in be_tokens)
    engine.executor.gate_open = True
    run(engine, collector)
    for i in range(3):
        assert collector.tokens[f"be{i}"] == continuation([i + 1] * 6, 8)
    check_no_leak(engine)


def test_cancel_while_in_flight_is_dropped_as_stale_and_blocks_come_back():
    engine = make_engine(be_device_residency=False)
    engine.submit(submit("be", [5] * 6, "BE", max_tokens=30))
    collector = Collector()
    while not engine.jobs.count(ServiceClass.BE, Stage.HOPPING):
        collector.take(engine.step())
    engine.executor.gate_open = False
    engine.step()
    engine.cancel("be")
    assert engine.residency.draining
    assert engine.residency.host.pool.used_blocks > 0
    engine.executor.gate_open = True
    run(engine, collector)
    assert engine.executor.stale == 1
    check_no_leak(engine)


def test_prefix_is_found_again_in_both_tiers_and_salt_separates():
    engine = make_engine(device_blocks=30, host_blocks=30, be_device_residency=False)
    prompt = list(range(1, 18))
    for round_ in range(2):
        for name, salt in (("LS", "a"), ("BE", "a")):
            engine.submit(submit(f"{name}{round_}", prompt, name, cache_salt=salt))
        run(engine)
    hits = engine.residency.device.hit_tokens, engine.residency.host.hit_tokens
    assert hits == (16, 16)
    engine.submit(submit("other", prompt, "LS", cache_salt="b"))
    got = run(engine)
    assert engine.residency.device.hit_tokens == 16
    assert got.tokens["other"] == continuation(prompt, 5)


@pytest.mark.parametrize("residency", [True, False])
def test_requests_of_one_prompt_that_come_together_compute_it_once(residency):
    engine = make_engine(device_blocks=60, host_blocks=60, be_device_residency=residency)
    same, other = list(range(1, 42)), list(range(3, 30))
    for n in range(4):
        engine.submit(submit(f"same{n}", same, "BE"))
    engine.submit(submit("other", other, "BE"))
    got = run(engine)
    tier = engine.residency.device if residency else engine.residency.host
    size = tier.block_tokens
    assert tier.hit_tokens == 3 * (40 // size * size)
    for n in range(4):
        assert got.tokens[f"same{n}"] == continuation(same, 5)
    assert got.tokens["other"] == continuation(other, 5)
    check_no_leak(engine)


def test_drafts_are_verified_in_one_hop():
    engine = make_engine(be_device_residency=False, drafts=ScriptedDrafts(right=2, wrong=2))
    engine.submit(submit("be", [9] * 6, "BE", max_tokens=12))
    got = run(engine)
    assert got.tokens["be"] == continuation([9] * 6, 12)
    assert engine.counts.accepted_drafts >= 6
    assert engine.counts.rejected_drafts >= 4
    check_no_leak(engine)


def test_stop_token_ends_a_request_in_the_middle_of_a_draft():
    tokens = continuation([9] * 6, 12)
    engine = make_engine(be_device_residency=False, drafts=ScriptedDrafts(right=4, wrong=0))
    engine.submit(submit("be", [9] * 6, "BE", max_tokens=12, stop_token_ids=[tokens[3]]))
    got = run(engine)
    assert got.tokens["be"] == tokens[: tokens.index(tokens[3]) + 1]
    assert got.finished["be"] == "stop"
    check_no_leak(engine)


def test_continued_request_repeats_nothing():
    tokens = continuation([3] * 6, 10)
    engine = make_engine()
    engine.submit(submit("be", [3] * 6, "BE", max_tokens=10, emitted=tokens[:4]))
    assert run(engine).tokens["be"] == tokens[4:]


def test_be_leaves_the_device_for_ls_and_its_written_blocks_are_not_copied_again():
    engine = make_engine(device_blocks=16, host_blocks=40)
    engine.submit(submit("be", [2] * 9, "BE", max_tokens=40))
    collector = Collector()
    while len(collector.tokens.get("be", [])) < 6:
        collector.take(engine.step())
    assert engine.jobs.count(ServiceClass.BE, Stage.DECODE) == 1
    engine.submit(submit("ls", list(range(1, 50)), "LS", max_tokens=8))
    run(engine, collector)
    assert engine.residency.counts.to_host >= 1
    assert collector.tokens["ls"] == continuation(list(range(1, 50)), 8)
    assert collector.tokens["be"] == continuation([2] * 9, 40)
    check_no_leak(engine)


@pytest.mark.parametrize("depth", [0, 1])
def test_be_requests_that_wait_are_predicted_again_once_lengths_are_known(depth):
    engine = make_engine(depth=depth, host_blocks=100)
    for i in range(40):
        limit = 14 if i < 8 else 30 if i % 2 else 10
        engine.submit(submit(f"be{i}", [i + 1] * 5, "BE", max_tokens=limit))
    collector = Collector()
    while len(collector.finished) < 7:
        collector.take(engine.step())
    waiting = list(engine.jobs.at(ServiceClass.BE, Stage.WAITING))
    assert {j.predicted_tokens for j in waiting} == {35, 15}  # their limits
    while len(collector.finished) < 8:
        collector.take(engine.step())
    waiting = list(engine.jobs.at(ServiceClass.BE, Stage.WAITING))
    assert {j.predicted_tokens for j in waiting} == {19, 15}
    run(engine, collector)
    check_no_leak(engine)


@pytest.mark.parametrize("host_blocks", [12, 40])
def test_the_oldest_be_request_ends_beside_endless_ls(host_blocks):
    """More LS than the device can hold, for ever: it is preempted and resumed, BE goes on."""
    engine = make_engine(device_blocks=12, host_blocks=host_blocks, max_waiting=10_000)
    for i in range(3):
        engine.submit(submit(f"be{i}", [i + 1] * 12, "BE", max_tokens=20))
    collector = Collector()
    for step in range(3000):
        if engine.jobs.count(ServiceClass.LS, Stage.WAITING) < 4:
            engine.submit(submit(f"ls{step}", [step % 90] * 9, "LS", max_tokens=12))
        collector.take(engine.step())
        if "be0" in collector.finished:
            break
    assert collector.tokens["be0"] == continuation([1] * 12, 20)
    assert sum(name.startswith("ls") for name in collector.finished) > 5


def test_endless_be_does_not_hold_up_ls():
    engine = make_engine(device_blocks=12, host_blocks=40, max_waiting=10_000)
    collector = Collector()
    for i in range(200):
        engine.submit(submit(f"be{i}", [i % 90] * 12, "BE", max_tokens=20))
    for _ in range(50):
        collector.take(engine.step())
    engine.submit(submit("ls", [5] * 16, "LS", max_tokens=10))
    # Two iterations of prefill, one per further token, one for BE to leave the device.
    for _ in range(2 + 9 + 1):
        collector.take(engine.step())
    assert collector.finished.get("ls") == "length"


def test_youngest_ls_is_swapped_and_resumes():
    engine = make_engine(device_blocks=8, host_blocks=20, ls_prefill_rows=32)
    for i in range(2):
        engine.submit(submit(f"ls{i}", [i + 1] * 8, "LS", max_tokens=20))
    got = run(engine)
    for i in range(2):
        assert got.tokens[f"ls{i}"] == continuation([i + 1] * 8, 20)
    assert engine.residency.counts.swapped >= 1
    check_no_leak(engine)


@pytest.mark.parametrize(
    ("fields", "reason", "part"),
    [
        ({"prompt": []}, "bad_request", "prompt has 0 tokens"),
        ({"max_tokens": 0}, "bad_request", "max_tokens is 0"),
        ({"prompt": [1] * 48}, "too_long", "may have 48 tokens"),
        ({"prompt": [1000]}, "bad_request", "token id 1000 is unknown; ids are 0 to 96"),
    ],
)
def test_refusals_name_what_is_wrong(fields, reason, part):
    engine = make_engine()
    refused = engine.submit(submit("a", **{"prompt": [1], **fields}))
    assert refused.reason == reason
    assert part in refused.message


def test_full_queue_refuses():
    engine = make_engine(max_waiting=2)
    answers = [engine.submit(submit(f"r{i}", [1, 2])) for i in range(3)]
    assert [a and a.reason for a in answers] == [None, None, "queue_full"]


def test_penalised_rows_wait_for_their_history_at_depth_one():
    engine = make_engine(depth=1)
    engine.submit(submit("a", [1] * 5, max_tokens=6, sampling=PENALISED))
    run(engine)
    for iteration in engine.executor.launches:
        for segment in iteration.segments:
            assert segment.from_seat == -1


REQUEST = st.fixed_dictionaries(
    {
        "service_class": st.sampled_from(["LS", "BE"]),
        "family": st.integers(0, 2),  # shared prefixes
        "length": st.integers(1, 30),
        "max_tokens": st.integers(1, 16),
        "emitted": st.sampled_from([0, 0, 0, 3]),
        "priority": st.integers(-1, 1),
        "penalised": st.booleans(),
        "at": st.integers(0, 30),
        "cancel_after": st.none() | st.integers(0, 40),
    }
)


class Mix:
    """Random requests on their way through an engine, and what is expected of each."""

    def __init__(self, engine, requests):
        self.engine, self.requests = engine, requests
        self.collector, self.cancelled = Collector(), set()
        self.expected = {}

    def act(self, step):
        """Submit and cancel what is due."""
        for number, request in enumerate(self.requests):
            name = f"r{number}"
            if request["at"] == step:
                self._submit(name, request)
            after = request["cancel_after"]
            if after is not None and step == request["at"] + after:
                if name not in self.collector.finished:
                    self.cancelled.add(name)
                self.engine.cancel(name)

    def _submit(self, name, request):
        prompt = family_prompt(request["family"], request["length"])
        tokens = continuation(prompt, request["max_tokens"])
        emitted = tokens[: min(request["emitted"], len(tokens) - 1)]
        limit = self.engine.intake.limits.max_request_tokens[request["service_class"]]
        refused = self.engine.submit(
            submit(
                name,
                prompt,
                request["service_class"],
                request["max_tokens"],
                priority=request["priority"],
                emitted=emitted,
                sampling=PENALISED if request["penalised"] else GREEDY,
            )
        )
        fits = len(prompt) + len(emitted) < limit
        assert (refused is None) == fits, refused
        if fits:
            self.expected[name] = tokens[len(emitted) : limit - len(prompt)]

    def check(self):
        """Every token as expected, in full unless cancelled."""
        for name, expected in self.expected.items():
            got = self.collector.tokens.get(name, [])
            assert got == (expected[: len(got)] if name in self.cancelled else expected), name
        check_no_leak(self.engine)


def family_prompt(family, length):
    """Prompts of one family are prefixes of each other; no two blocks are alike."""
    return [(31 * family + 7 * i + 1) % 97 for i in range(length)]


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    requests=st.lists(REQUEST, min_size=1, max_size=10),
    device_blocks=st.integers(2, 20),
    host_blocks=st.integers(2, 24),
    depth=st.integers(0, 1),
    residency=st.booleans(),
    seed=st.integers(0, 3),
    drafts=st.sampled_from([None, (1, 1), (3, 0)]),
    slots=st.integers(1, 6),
    device_rows=st.integers(1, 6),
    join_rows=st.integers(1, 8),
    closed=st.sets(st.integers(0, 60)),
)
def test_any_mix_finishes_exactly_and_frees_everything(
    requests,
    device_blocks,
    host_blocks,
    depth,
    residency,
    seed,
    drafts,
    slots,
    device_rows,
    join_rows,
    closed,
):
    engine = make_engine(
        device_blocks,
        host_blocks,
        depth=depth,
        seed=seed,
        slots=slots,
        be_device_residency=residency,
        drafts=ScriptedDrafts(*drafts) if drafts else None,
        max_device_rows=device_rows,
        join_rows=join_rows,
    )
    mix = Mix(engine, requests)
    for step in range(4000):
        engine.executor.gate_open = step not in closed
        mix.act(step)
        mix.collector.take(engine.step())
        check_consistent(engine)
        if step > 80 and engine.idle:
            break
    assert engine.idle, state(engine)
    mix.check()


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("residency", [True, False])
def test_the_policy_is_told_what_a_promised_service_did(depth, residency):
    """Row-layers of its prompts, device rows and hops, each once; nothing of other services."""
    engine = make_engine(depth=depth, be_device_residency=residency)
    served = Counter()

    def observed(work, seconds):
        for name, had in work.served.items():
            served[name, "batch"] += had.batch
            served[name, "staged"] += had.staged

    object.__setattr__(engine.policy, "observed", observed)
    for i, share in ((0, 20), (1, 0)):
        engine.submit(
            submit(f"be{i}", [i + 1] * 9, "BE", 6, service=f"s{i}", min_share_percent=share)
        )
    run(engine)
    assert {name for name, _ in served} == {"s0"}
    rows = 9 + 5 + engine.counts.late_rows  # a row found finished late was computed
    assert sum(served.values()) >= 3 * (9 + 5)
    assert sum(served.values()) <= 3 * rows
    if not residency:
        assert served["s0", "staged"] == 3 * 9


TPOT_S = 1.0 - DELIVERY_JITTER  # of what is promised


class Expecting:
    """Fixed caps that expect every iteration to take half a second."""

    def __init__(self, policy):
        self.policy, self.asked = policy, []

    def plan(self, jobs, room, now_s):
        due = [job.deadlines.due_s for job in jobs.at(ServiceClass.LS, Stage.DECODE)]
        self.asked.append((now_s, *due))
        return self.policy.plan(jobs, room, now_s)

    def expects(self, work):
        return 0.5

    def __getattr__(self, name):
        return getattr(self.policy, name)


@pytest.mark.parametrize(
    ("depth", "asked"),
    [
        (0, [(10.0,), (10.0, 10.0 + TPOT_S), (10.0, 10.0 + 2 * TPOT_S)]),
        # At the end of what runs, for the token after those on their way.
        (1, [(10.0,), (10.5, 10.5 + TPOT_S), (10.5, 10.0 + 2 * TPOT_S), (10.5, 10.0 + 3 * TPOT_S)]),
    ],
)
def test_a_plan_is_for_the_end_of_what_is_under_way(depth, asked):
    engine = make_engine(depth=depth, clock=lambda: 10.0)
    engine.policy = policy = Expecting(engine.policy)
    slo = {"ttft_slo_ms": 2000, "tpot_slo_ms": 1000}
    assert engine.submit(submit("LS", [1, 2, 3], "LS", max_tokens=9, **slo)) is None
    for _ in asked:
        engine.step()
    assert policy.asked == [pytest.approx(times) for times in asked]
