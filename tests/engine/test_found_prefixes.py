"""What of an LS prompt is on the device is known while it waits; over the fake executor."""

from omniserve_agent.engine.messages import ServiceClass
from omniserve_agent.scheduling.jobs import Stage, Tier
from support.fake_engine import Collector, check_consistent, check_no_leak, make_engine, run, submit
from support.fake_executor import BLOCK, continuation

LS = ServiceClass.LS
SYSTEM = [(5 * i + 3) % 97 for i in range(10 * BLOCK)]  # with two tokens behind it eleven blocks


def asks(name, last, *args, **more):
    return submit(name, [*SYSTEM, last, 1], *args, **more)


def expected(last, tokens=5):
    return continuation([*SYSTEM, last, 1], tokens)


def job(engine, name):
    return engine.intake.find(name).job


def found(engine, name):
    return job(engine, name).found_tokens, job(engine, name).shared_blocks


def until(engine, collector, condition):
    for _ in range(100):
        if condition():
            return
        collector.take(engine.step())
        check_consistent(engine)
    raise AssertionError("it never came to that")


def test_what_is_cached_and_what_of_it_is_held_is_known_from_the_start():
    engine, collector = make_engine(device_blocks=40), Collector()
    engine.submit(asks("first", 1))
    assert found(engine, "first") == (0, 0)
    run(engine, collector)
    engine.submit(asks("idle", 2, max_tokens=20))
    assert found(engine, "idle") == (40, 0)
    assert (job(engine, "idle").remaining, job(engine, "idle").new_blocks(BLOCK)) == (2, 11)
    until(engine, collector, lambda: job(engine, "idle").stage is Stage.DECODE)
    engine.submit(asks("held", 3))
    assert found(engine, "held") == (40, 10)
    assert (job(engine, "held").remaining, job(engine, "held").new_blocks(BLOCK)) == (2, 1)
    engine.submit(asks("salted", 3, cache_salt="other"))
    engine.submit(asks("batch", 3, "BE"))  # BE is planned by other figures
    assert found(engine, "salted") == found(engine, "batch") == (0, 0)
    run(engine, collector)
    assert collector.tokens["held"] == expected(3)
    check_no_leak(engine)


def test_it_waits_for_no_room_for_blocks_that_others_hold():
    engine, collector = make_engine(device_blocks=26), Collector()
    engine.submit(asks("holder", 1, max_tokens=20))
    until(engine, collector, lambda: collector.tokens.get("holder"))
    pool = engine.residency.device.pool
    taken = pool.allocate(pool.free_blocks - 3)
    engine.submit(asks("next", 2, max_tokens=2))
    collector.take(engine.step())
    assert job(engine, "next").stage is Stage.DECODE
    pool.release(taken)
    check_consistent(engine)
    assert engine.jobs.ls_device_blocks < 2 * 11
    run(engine, collector)
    assert collector.tokens["next"] == expected(2, 2)
    assert collector.tokens["holder"] == expected(1, 20)
    check_no_leak(engine)


def test_what_others_compute_meanwhile_is_found_by_all_that_wait():
    """One of them is not the first in rank; without, each would need eleven blocks of the three."""
    engine, collector = make_engine(device_blocks=14), Collector()
    engine.submit(asks("holder", 1, max_tokens=6))
    for number, name in enumerate(("second", "third")):
        engine.submit(asks(name, 2 + number, max_tokens=2))
        assert found(engine, name) == (0, 0)
    until(engine, collector, lambda: engine.jobs.count(LS, Stage.WAITING) == 0)
    assert "holder" not in collector.finished
    assert engine.residency.device.hit_tokens == 2 * 40
    run(engine, collector)
    assert [collector.tokens[n] for n in ("second", "third")] == [expected(2, 2), expected(3, 2)]
    check_no_leak(engine)


def test_a_promise_that_the_cache_did_not_keep_is_mended():
    """All of it is evicted before the admission, which a plan thought to need a block alone."""
    engine, collector = make_engine(device_blocks=14), Collector()
    engine.submit(asks("first", 1))
    run(engine, collector)
    engine.submit(asks("late", 2))
    pool, late = engine.residency.device.pool, job(engine, "late")
    taken = pool.allocate(pool.free_blocks)
    assert late.found_tokens == 40
    late.shared_blocks = 10
    assert not engine.residency.admit(engine.intake.find("late"), Tier.DEVICE)
    assert (late.stage, late.computed, *found(engine, "late")) == (Stage.WAITING, 0, 0, 0)
    for _ in range(3):
        collector.take(engine.step())
    assert late.stage is Stage.WAITING
    pool.release(taken)
    check_consistent(engine)
    run(engine, collector)
    assert collector.tokens["late"] == expected(2)
    check_no_leak(engine)


def test_a_plan_that_relied_on_an_evicted_prefix_computes_it():
    engine, collector = make_engine(device_blocks=14, ls_prefill_rows=16), Collector()
    engine.submit(asks("first", 1))
    run(engine, collector)
    engine.submit(asks("late", 2))
    late, pool = job(engine, "late"), engine.residency.device.pool
    engine._look_up_waiting = lambda: None
    pool.release(pool.allocate(pool.free_blocks))
    assert (late.found_tokens, late.remaining) == (40, 2)
    collector.take(engine.step())
    check_consistent(engine)
    assert (late.stage, late.computed, late.remaining) == (Stage.PREFILL, 2, 40)
    run(engine, collector)
    assert collector.tokens["late"] == expected(2)


def test_kv_that_is_dropped_is_not_found_for_that():
    engine, collector = make_engine(device_blocks=14), Collector()
    engine.submit(asks("first", 1, max_tokens=6))
    until(engine, collector, lambda: len(collector.tokens.get("first", ())) == 2)
    engine.residency.drop(engine.intake.find("first"))
    assert found(engine, "first") == (0, 0)
    check_consistent(engine)
    run(engine, collector)
    assert collector.tokens["first"] == expected(1, 6)
    check_no_leak(engine)
