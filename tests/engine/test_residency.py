"""Moves between the tiers, relief, and what the figures say of them; over the fake executor."""

from dataclasses import replace

import pytest

from omniserve_agent.engine.drafts import NoDrafts
from omniserve_agent.engine.messages import ServiceClass
from omniserve_agent.engine.reporting import Reporter
from omniserve_agent.scheduling.exhaustion import Relief, Victim
from omniserve_agent.scheduling.jobs import Stage
from omniserve_agent.scheduling.plan import Plan
from support.fake_engine import Collector, check_consistent, check_no_leak, make_engine, run, submit
from support.fake_executor import BLOCK, continuation

LS, BE = ServiceClass.LS, ServiceClass.BE


class Right(NoDrafts):
    """Always right, for so many tokens."""

    def __init__(self, tokens):
        self.tokens = tokens

    def propose(self, *known):
        tokens, longest = known[-2:]
        return continuation(tokens, min(self.tokens, longest))


def prompt(start, length):
    return [(start + 7 * i) % 97 for i in range(length)]


def until(engine, collector, condition, steps=500):
    for _ in range(steps):
        if condition():
            return
        collector.take(engine.step())
        check_consistent(engine)
    raise AssertionError("it never came to that")


def request(engine, name):
    return engine.intake.find(name)


def be_on_device(engine, collector, name="be", length=9, max_tokens=40, tokens=3):
    """A BE request that decodes on the device."""
    engine.submit(submit(name, prompt(1, length), "BE", max_tokens=max_tokens))
    until(engine, collector, lambda: len(collector.tokens.get(name, ())) >= tokens)
    assert request(engine, name).job.stage is Stage.DECODE
    return request(engine, name)


@pytest.mark.parametrize("depth", [0, 1])
def test_there_and_back_again_at_every_token(depth):
    engine, collector = make_engine(device_blocks=20, depth=depth), Collector()
    be_on_device(engine, collector)
    moves = 0
    while not engine.idle:
        be = request(engine, "be")
        if be is not None and be.job.stage is Stage.DECODE:
            moves += engine.residency.demote(be)
        elif be is not None and be.job.stage is Stage.BOUNDARY:
            moves += engine.residency.promote(be)
        check_consistent(engine)
        collector.take(engine.step())
    assert moves > 20
    assert collector.tokens["be"] == continuation(prompt(1, 9), 40)
    assert engine.residency.counts.to_host + engine.residency.counts.to_device >= moves
    check_no_leak(engine)


@pytest.mark.parametrize("depth", [0, 1])
def test_filled_blocks_are_written_through_so_that_leaving_costs_the_tail(depth, monkeypatch):
    engine, collector = make_engine(device_blocks=30, depth=depth), Collector()
    be = be_on_device(engine, collector, tokens=12)
    assert be.copied_tokens >= be.job.computed - BLOCK
    copied = []
    copy = engine.executor.copy_to_host
    monkeypatch.setattr(
        engine.executor, "copy_to_host", lambda *a: copied.append(a[-1]) or copy(*a)
    )
    engine.residency.demote(be)
    assert sum(copied) <= BLOCK
    run(engine, collector)
    assert collector.tokens["be"] == continuation(prompt(1, 9), 40)


def test_a_slot_that_drains_is_not_a_free_slot():
    engine, collector = make_engine(be_device_residency=False, slots=1), Collector()
    for name in ("gone", "next"):
        engine.submit(submit(name, prompt(len(name), 6), "BE", max_tokens=8))
    until(engine, collector, lambda: engine.jobs.count(BE, Stage.BOUNDARY, Stage.HOPPING) == 2)
    until(engine, collector, lambda: request(engine, "gone").job.stage is Stage.HOPPING)
    engine.executor.gate_open = False
    until(engine, collector, engine.executor.in_flight)
    engine.cancel("gone")
    for _ in range(5):
        collector.take(engine.step())
        check_consistent(engine)
    assert request(engine, "next").job.stage is Stage.BOUNDARY
    engine.executor.gate_open = True
    run(engine, collector)
    assert collector.tokens["next"] == continuation(prompt(4, 6), 8)
    check_no_leak(engine)


def test_a_request_that_leaves_the_device_keeps_its_own_copy():
    """The host is full of others: they give way, the first-ranked loses nothing."""
    engine, collector = make_engine(device_blocks=40, host_blocks=12), Collector()
    first = be_on_device(engine, collector, length=13, max_tokens=20)
    assert first.host is not None
    engine.submit(submit("second", prompt(50, 20), "BE", max_tokens=12))
    until(engine, collector, lambda: request(engine, "second").job.stage is Stage.DECODE)
    engine.residency.demote(request(engine, "second"))
    engine.residency.host.pool.allocate(engine.residency.host.pool.free_blocks)  # somebody else's
    assert engine.residency.demote(first)
    assert first.job.stage is Stage.BOUNDARY
    assert first.job.computed >= 13
    assert request(engine, "second").job.stage is Stage.WAITING


def test_nobody_gives_way_in_vain_and_a_lost_request_is_counted_once():
    """LS that is larger than the host leaves the device: no BE request loses its KV for that."""
    engine = make_engine(
        device_blocks=20, host_blocks=13, ls_prefill_rows=64, be_device_residency=False
    )
    collector = Collector()
    for i in range(2):
        engine.submit(submit(f"be{i}", prompt(i, 9), "BE", max_tokens=15))
    engine.submit(submit("ls", prompt(3, 56), max_tokens=20))
    until(engine, collector, lambda: engine.jobs.count(BE, Stage.BOUNDARY, Stage.HOPPING) == 2)
    until(engine, collector, lambda: request(engine, "ls").job.stage is Stage.DECODE)
    engine.residency._swap_out(request(engine, "ls"))
    assert engine.residency.counts.recomputed == 1
    assert request(engine, "ls").job.stage is Stage.WAITING
    assert [request(engine, n).job.computed > 0 for n in ("be0", "be1")] == [True, True]
    assert run(engine, collector).tokens["ls"] == continuation(prompt(3, 56), 20)
    check_no_leak(engine)


def test_a_copy_that_was_dropped_is_made_again_from_the_start():
    engine, collector = make_engine(device_blocks=30), Collector()
    be = be_on_device(engine, collector)
    assert be.copied_tokens >= 8
    host = engine.residency.host.pool
    assert engine.residency._relieve(Victim(be.job, Relief.DROP_COPY))
    host.allocate(2)  # other blocks than before
    assert engine.residency.demote(be)
    assert run(engine, collector).tokens["be"] == continuation(prompt(1, 9), 40)


def test_be_goes_on_from_the_host_when_the_device_is_full():
    engine, collector = make_engine(device_blocks=20), Collector()
    be = be_on_device(engine, collector)
    device = engine.residency.device.pool
    taken = device.allocate(device.free_blocks)  # somebody else's
    for _ in range(10):
        collector.take(engine.step())
    assert be.device is None
    assert be.job.stage in (Stage.BOUNDARY, Stage.HOPPING)
    assert engine.residency.counts.recomputed == 0
    device.release(taken)
    check_consistent(engine)
    assert run(engine, collector).tokens["be"] == continuation(prompt(1, 9), 40)
    check_no_leak(engine)


def test_one_need_takes_one_victim_whose_blocks_are_still_to_come():
    engine = make_engine(be_device_residency=False, host_blocks=12)
    collector = Collector()
    for i in range(3):
        engine.submit(submit(f"be{i}", prompt(i, 5), "BE", max_tokens=8))
    until(engine, collector, lambda: engine.jobs.count(BE, Stage.BOUNDARY, Stage.HOPPING) == 3)
    engine.executor.gate_open = False
    until(engine, collector, lambda: engine.executor.in_flight() == 3)
    engine.submit(submit("first", prompt(50, 40), "BE", max_tokens=4, priority=1))
    for _ in range(5):
        collector.take(engine.step())
        check_consistent(engine)
    assert engine.residency.counts.recomputed == 1
    engine.executor.gate_open = True
    run(engine, collector)
    assert collector.tokens["first"] == continuation(prompt(50, 40), 4)
    for i in range(3):
        assert collector.tokens[f"be{i}"] == continuation(prompt(i, 5), 8)


def test_ls_without_kv_yet_just_waits_again():
    engine, collector = make_engine(device_blocks=20), Collector()
    for i in range(2):
        engine.submit(submit(f"ls{i}", prompt(i, 20), max_tokens=2))
    engine.step()
    second = request(engine, "ls1")
    assert (second.job.stage, second.job.computed) == (Stage.PREFILL, 0)
    engine.residency._swap_out(second)
    check_consistent(engine)
    assert second.job.stage is Stage.WAITING
    assert (engine.residency.counts.swapped, engine.residency.counts.recomputed) == (0, 0)
    assert run(engine, collector).tokens["ls1"] == continuation(prompt(1, 20), 2)


def test_only_admitted_requests_have_prefix_hits():
    engine, collector = make_engine(host_blocks=8, be_device_residency=False), Collector()
    engine.submit(submit("known", prompt(1, 17), "BE", max_tokens=2))
    run(engine, collector)
    taken = engine.residency.host.pool.allocate(4)  # not those of the prefix
    engine.submit(submit("again", prompt(1, 17), "BE", max_tokens=2))
    for _ in range(3):
        engine.step()
        check_state = request(engine, "again").job
        assert (check_state.stage, check_state.computed) == (Stage.WAITING, 0)
    assert engine.residency.host.hit_tokens == 0
    engine.residency.host.pool.release(taken)
    run(engine, collector)
    assert engine.residency.host.hit_tokens == 16
    assert collector.tokens["again"] == continuation(prompt(1, 17), 2)


def test_cached_tokens_are_told_once_with_the_first_event():
    engine = make_engine(device_blocks=20)
    engine.submit(submit("one", prompt(1, 9), max_tokens=3))
    run(engine)
    engine.submit(submit("two", prompt(1, 9), max_tokens=3))
    told = [event.cached_tokens for _ in range(8) for event in engine.step()]
    assert told == [8, 0, 0]
    assert engine.services["default/ls"].cached_prompt_tokens == 8
    assert engine.services["default/ls"].prompt_tokens == 18


@pytest.mark.parametrize("service_class", ["LS", "BE"])
@pytest.mark.parametrize("depth", [0, 1])
def test_a_request_may_fill_its_pool_to_the_last_token(service_class, depth):
    engine = make_engine(device_blocks=5, host_blocks=5, depth=depth, be_device_residency=False)
    asked = prompt(1, 5 * BLOCK - 1)
    engine.submit(submit("one", asked, service_class, max_tokens=9))
    engine.submit(submit("two", asked[:12], service_class, max_tokens=99))
    got = run(engine)
    assert got.tokens["one"] == continuation(asked, 1)
    assert got.tokens["two"] == continuation(asked[:12], 8)
    assert set(got.finished.values()) == {"length"}
    check_no_leak(engine)


def test_no_row_follows_the_last_possible_token():
    engine = make_engine(depth=1, device_blocks=20)
    for name in ("LS", "BE"):
        engine.submit(submit(name, prompt(1, 5), name, max_tokens=6))
    run(engine)
    assert engine.counts.late_rows == 0
    # The prompt, then every output token but the last.
    assert engine.counts.device_rows == {LS: 5 + 5, BE: 5 + 5}
    assert engine.counts.be_prefill_tokens == 5


def test_drafts_are_no_longer_than_the_lanes():
    engine = make_engine(be_device_residency=False, drafts=Right(7), join_rows=2)
    engine.submit(submit("be", prompt(1, 6), "BE", max_tokens=9))
    got = run(engine, max_steps=300)
    assert got.tokens["be"] == continuation(prompt(1, 6), 9)
    assert engine.counts.accepted_drafts == 4


def test_the_first_be_goes_on_from_the_host_when_ls_takes_every_row():
    engine, collector = make_engine(device_blocks=60, max_device_rows=2), Collector()
    be_on_device(engine, collector, max_tokens=20)
    for step in range(400):
        if engine.jobs.count(LS, Stage.WAITING) < 2:
            engine.submit(submit(f"ls{step}", prompt(step, 4), max_tokens=12))
        collector.take(engine.step())
        check_consistent(engine)
        if "be" in collector.finished:
            break
    assert collector.tokens["be"] == continuation(prompt(1, 9), 20)
    assert engine.residency.counts.to_host == 1


def test_a_prefill_cancelled_as_it_ends_leaves_nothing():
    engine, collector = make_engine(be_device_residency=False, depth=1), Collector()
    engine.submit(submit("be", prompt(1, 6), "BE", max_tokens=8))
    until(engine, collector, lambda: request(engine, "be").pending)
    assert request(engine, "be").job.held
    engine.cancel("be")
    assert run(engine, collector).tokens == {}
    assert engine.counts.late_rows == 1
    check_no_leak(engine)


def test_figures_are_of_what_ran():
    engine = make_engine(be_device_residency=False, drafts=Right(1), layers=3)
    reporter = Reporter(engine=engine, layers=3, host_workers=1, now_s=100.0)
    engine.submit(submit("be", prompt(1, 6), "BE", max_tokens=9))
    engine.submit(submit("ls", prompt(2, 6), max_tokens=3))
    run(engine)
    for _ in range(engine.counts.iterations):
        reporter.stepped(0.002)
    stats = reporter.report(110.0)  # ten seconds, most of them idle
    assert stats.iteration_ms == pytest.approx(2.0)
    assert stats.be_tokens_per_s == pytest.approx(0.9)
    assert stats.services["default/be"].output_tokens == 9
    assert stats.services["default/ls"].finished == 1
    assert stats.device_attention_rows == {LS: (6 + 2) * 3, BE: 6 * 3}
    assert stats.rows_in_flight == stats.offloaded_requests == 0
    again = reporter.report(111.0)
    assert (again.iteration_ms, again.be_tokens_per_s) == (0.0, 0.0)
    assert again.services == stats.services


def test_a_token_that_came_back_for_a_request_dropped_meanwhile_is_not_taken():
    engine, collector = make_engine(be_device_residency=False, depth=1), Collector()
    engine.submit(submit("be", prompt(1, 6), "BE", max_tokens=12))
    until(engine, collector, lambda: any(one[1].chosen.hops for one in engine._uncollected))
    engine.residency.drop(request(engine, "be"))
    late = engine.counts.late_rows
    collector.take(engine.step())
    assert engine.counts.late_rows == late + 1
    assert run(engine, collector).tokens["be"] == continuation(prompt(1, 6), 12)
    check_no_leak(engine)


def test_a_prefill_that_gives_way_to_an_entry_is_not_in_the_batch():
    engine = make_engine(be_device_residency=False, host_blocks=30, be_prefill_rows=1)
    collector = Collector()
    engine.submit(submit("first", prompt(1, 5), "BE", max_tokens=20))
    until(engine, collector, lambda: collector.tokens.get("first"))
    engine.submit(submit("second", prompt(50, 30), "BE", max_tokens=2))
    until(engine, collector, lambda: engine.batch.staged)
    host = engine.residency.host.pool
    taken = host.allocate(host.free_blocks)  # somebody else's
    for _ in range(200):
        collector.take(engine.step())
        if engine.residency.counts.recomputed:
            break
    assert not engine.batch.staged
    assert request(engine, "second").job.stage is Stage.WAITING
    host.release(taken)
    run(engine, collector)
    assert collector.tokens["first"] == continuation(prompt(1, 5), 20)
    assert collector.tokens["second"] == continuation(prompt(50, 30), 2)


class LastFirst:
    """A policy in whose plans rows enter in the reverse of their rank, as for a promised share."""

    def __init__(self, policy):
        self._policy = policy

    def __getattr__(self, name):
        return getattr(self._policy, name)

    def plan(self, jobs, room, now_s):
        plan = self._policy.plan(jobs, room, now_s)
        return replace(plan, entries=plan.entries[::-1])


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("blocks", [8, 9, 10, 11])
def test_an_entry_that_gives_way_to_a_later_one_is_not_in_the_batch(depth, blocks):
    """Its slot, which no hop has used yet, is the next one's at once."""
    engine = make_engine(be_device_residency=False, host_blocks=blocks, depth=depth)
    engine.policy, collector = LastFirst(engine.policy), Collector()
    for _ in range(20):
        engine.lengths.observe("default/be", 1)  # more is let in than fits to its end
    build = engine.batch.build

    def watched(*args):
        iteration = build(*args)
        if iteration is not None:
            slots = [entry.slot for entry in iteration.entries]
            assert len(slots) == len(set(slots))
        return iteration

    engine.batch.build = watched
    wanted = {f"be{i}": (prompt(10 * i, 5), 14) for i in range(3)}
    for name, (tokens, count) in wanted.items():
        engine.submit(submit(name, tokens, "BE", max_tokens=count))
    run(engine, collector)
    assert engine.residency.counts.recomputed
    for name, (tokens, count) in wanted.items():
        assert collector.tokens[name] == continuation(tokens, count)
    check_no_leak(engine)


@pytest.mark.parametrize("depth", [0, 1])
def test_choices_are_numbered_by_output_token(depth):
    """A seeded choice depends on its number: it must survive drafts, moves and replays."""
    engine = make_engine(device_blocks=40, depth=depth, drafts=Right(2))
    tokens = continuation(prompt(9, 7), 8)
    engine.submit(submit("be", prompt(9, 7), "BE", max_tokens=8, emitted=tokens[:3]))
    collector = Collector()
    until(engine, collector, lambda: len(collector.tokens.get("be", ())) == 1)
    engine.submit(submit("ls", prompt(2, 7), max_tokens=8))
    engine.residency.demote(request(engine, "be"))
    run(engine, collector)
    numbers = {1: [], 2: []}
    for iteration in engine.executor.launches:
        samples = [s.sample for s in (*iteration.segments, *iteration.staged)]
        samples += [sample for entry in iteration.entries for sample in entry.samples]
        for sample in samples:
            if sample is not None:
                numbers[sample.handle].append(sample.output_index)
    assert numbers[2] == list(range(8))
    assert numbers[1][0] == 3
    assert set(numbers[1]) == {3, 4, 5, 6, 7}


def test_a_promised_entry_gives_its_slot_to_a_better_ranked_one():
    """A promised share puts a worse-ranked request first; its slot goes to the better-ranked."""
    engine, collector = make_engine(be_device_residency=False), Collector()
    for name, share in (("better", 0), ("promised", 30)):
        engine.submit(submit(name, prompt(len(name), 6), "BE", 20, min_share_percent=share))
    jobs, host = engine.jobs, engine.residency.host
    until(engine, collector, lambda: jobs.count(BE, Stage.BOUNDARY) == 2)
    better, promised = (request(engine, name) for name in ("better", "promised"))
    room = len(better.host.blocks) * BLOCK
    better.job.computed = max(better.job.computed, room)  # it needs a block now
    better.tokens += [0] * (room + 1 - len(better.tokens))
    host.pool.allocate(host.pool.free_blocks)  # somebody else's
    plan = Plan(entries=[promised.job, better.job], join_rows=1)
    iteration = engine.batch.build(0, plan, engine.intake.requests, jobs, lambda: False)
    assert promised.job.stage is Stage.WAITING
    assert [entry.slot for entry in iteration.entries] == [better.slot]
