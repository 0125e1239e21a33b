"""Admission in the loop: refusals, requests held back, what is counted; on a clock of our own."""

import pytest

from omniserve_agent.engine.messages import ServiceClass
from omniserve_agent.engine.reporting import Reporter
from omniserve_agent.scheduling.admission import AdmissionMode, Gate
from omniserve_agent.scheduling.costs import Costs
from omniserve_agent.scheduling.error_budgets import ErrorBudgets, Objective
from omniserve_agent.scheduling.latency import Correction, Curve, LatencyModel
from omniserve_agent.scheduling.plan import Caps, PolicyState
from support.fake_engine import check_no_leak, make_engine, run, submit

LAYERS = 3
# A prompt row takes 100 ms, a decode next to nothing beside it.
MODEL = LatencyModel(LAYERS, Curve((1, 101), (0.1 / 3, 10.1 / 3)), Curve((1,), (0.0,)))
SLO = {"ttft_slo_ms": 1000, "tpot_slo_ms": 10_000}


class Clock:
    now_s = 50.0

    def __call__(self):
        return self.now_s


def engine_with(mode, clock, **more):
    caps = Caps(
        layers=LAYERS,
        block_tokens=4,
        device_blocks=12,
        host_blocks=20,
        max_device_rows=6,
        join_rows=8,
        ls_prefill_rows=8,
        be_prefill_rows=6,
    )
    gate = Gate(Costs(MODEL, Correction(), ErrorBudgets()), caps, mode)
    return make_engine(gate=gate, clock=clock, **more)


def test_a_request_that_would_miss_is_refused_with_a_prediction():
    engine = engine_with(AdmissionMode.REJECT, Clock())
    assert engine.submit(submit("first", [1, 2, 3, 4, 5], **SLO)) is None
    refused = engine.submit(submit("second", [6, 7, 8, 9, 10], **SLO))
    assert (refused.reason, refused.retry_after_s) == ("slo", 1.0)
    assert "default/ls could not attain its SLO now" in refused.message
    assert engine.submit(submit("be", [1] * 9, "BE")) is None  # BE is never judged
    assert engine.submit(submit("free", [1] * 9)) is None  # nor is LS without an SLO
    assert set(run(engine).finished) == {"first", "be", "free"}
    assert engine.door.refused == {"default/ls": 1}
    check_no_leak(engine)


def test_one_that_is_held_back_is_taken_when_its_time_comes_and_none_is_lost():
    clock = Clock()
    engine = engine_with(AdmissionMode.QUEUE, clock)
    for number, name in enumerate(("first", "second", "third")):
        assert engine.submit(submit(name, [number, 2, 3, 4, 5], **SLO)) is None
    assert engine.door.held == 2
    assert not engine.idle
    clock.now_s += 5.0  # both held back have lost their TTFT, and come when nobody else waits
    assert set(run(engine).finished) == {"first", "second", "third"}
    assert engine.door.held == 0
    assert engine.missed["default/ls"] == 3
    check_no_leak(engine)


def test_those_held_back_are_counted_and_explained():
    engine = engine_with(AdmissionMode.QUEUE, Clock())
    engine.submit(submit("first", [1, 2, 3, 4, 5], service="team/first", **SLO))
    engine.submit(submit("second", [2, 2, 3, 4, 5], **SLO))
    engine.submit(submit("third", [3, 2, 3, 4, 5], service="team/ls", **SLO))
    assert engine.door.held == 2
    stats = Reporter(engine, LAYERS, 1, 50.0).report(51.0)
    assert (stats.services["default/ls"].waiting, stats.services["team/ls"].waiting) == (1, 1)
    late = "the first token would take"
    assert stats.waits["default/ls"].startswith(f"admission holds it back: {late}")
    assert stats.waits["team/ls"].startswith(
        f"admission holds it back behind 1 others; the first of them: {late}"
    )
    run(engine)
    assert Reporter(engine, LAYERS, 1, 50.0).report(51.0).waits == {}


def test_one_that_is_held_back_can_be_cancelled_and_the_line_has_an_end():
    engine = engine_with(AdmissionMode.QUEUE, Clock(), max_waiting=2)
    for number in range(3):
        assert engine.submit(submit(f"n{number}", [number, 2, 3, 4, 5], **SLO)) is None
    assert engine.submit(submit("late", [9, 2, 3, 4, 5], **SLO)).reason == "slo"
    engine.cancel("n1")
    assert engine.door.held == 1
    assert set(run(engine).finished) == {"n0", "n2"}


def test_a_short_newcomer_that_fits_waits_behind_those_held_back():
    engine = engine_with(AdmissionMode.QUEUE, Clock())
    engine.submit(submit("first", [1, 2, 3, 4, 5], **SLO))
    engine.submit(submit("second", [2, 2, 3, 4, 5], **SLO))
    assert engine.submit(submit("short", [3, 2], service="team/ls", **SLO)) is None
    assert engine.door.held_by_service() == {"default/ls": 1, "team/ls": 1}
    assert engine.submit(submit("free", [4, 2])) is None  # admission never judges it
    assert engine.submit(submit("be", [5, 2], "BE")) is None
    assert engine.door.held == 2
    seen = [event.request_id for _ in iter(lambda: engine.idle, True) for event in engine.step()]
    firsts = list(dict.fromkeys(seen))
    assert firsts.index("first") < firsts.index("second") < firsts.index("short")
    check_no_leak(engine)


def test_behind_a_full_line_a_newcomer_that_fits_is_refused_too():
    engine = engine_with(AdmissionMode.QUEUE, Clock(), max_waiting=2)
    for number in range(3):
        engine.submit(submit(f"n{number}", [number, 2, 3, 4, 5], **SLO))
    refused = engine.submit(submit("short", [3, 2], **SLO))
    assert refused.reason == "slo"
    assert refused.message.endswith("admission holds back 2 requests that came before it")


def test_one_that_misses_on_an_idle_engine_too_comes_last_and_holds_up_nobody():
    """44 of 48 tokens of KV: more than admission counts on."""
    patient = {"ttft_slo_ms": 10_000, "tpot_slo_ms": 10_000}
    engine = engine_with(AdmissionMode.QUEUE, Clock())
    engine.submit(submit("first", [1, 2, 3, 4, 5], **SLO))
    assert engine.submit(submit("huge", [2] * 44, **patient)) is None
    assert engine.submit(submit("second", [3, 2, 3, 4, 5], **SLO)) is None
    assert engine.door.held == 2
    seen = [event.request_id for _ in iter(lambda: engine.idle, True) for event in engine.step()]
    assert list(dict.fromkeys(seen)) == ["first", "second", "huge"]
    check_no_leak(engine)


@pytest.mark.parametrize("service_class", ["LS", "BE"])
def test_a_full_queue_goes_by_the_pace_at_which_it_lately_got_shorter(service_class):
    clock = Clock()
    engine = engine_with(AdmissionMode.REJECT, clock, max_waiting=2)
    names = iter("abcdefgh")

    def fill():
        while (refused := engine.submit(submit(next(names), [1] * 5, service_class))) is None:
            pass
        return refused

    assert (fill().reason, fill().retry_after_s) == ("queue_full", 1.0)  # nothing is known yet
    clock.now_s += 6.0
    engine.step()
    assert 1.0 < fill().retry_after_s <= 6.0
    clock.now_s += 9.0
    assert fill().retry_after_s == 9.0


def test_deadlines_begin_when_the_request_was_received():
    clock = Clock()
    engine = engine_with(AdmissionMode.OFF, clock)
    engine.submit(submit("late", [1, 2], received_s=clock.now_s - 3.0, **SLO))
    engine.submit(submit("now", [1, 2], received_s=clock.now_s + 3.0, **SLO))  # another clock
    run(engine)
    assert engine.missed["default/ls"] == 1
    assert engine.services["default/ls"].finished == 2
    assert engine.counts.output_tokens[ServiceClass.LS] == 10


def test_the_pace_inside_leaves_time_for_delivery():
    engine = engine_with(AdmissionMode.OFF, Clock())
    engine.submit(submit("chat", [1, 2], delivery_ms=40.0, **SLO))
    due = engine.intake.find("chat").job.deadlines
    assert 0.98 * 10.0 < due.tpot_s < 10.0
    assert due.ttft_s == 0.96
    engine.submit(submit("slow", [1, 2], delivery_ms=4000.0, **SLO))
    assert engine.intake.find("slow").job.deadlines.ttft_s == 0.5  # never all of it


def test_events_say_when_their_tokens_were_chosen():
    clock = Clock()
    engine = engine_with(AdmissionMode.OFF, clock)
    engine.submit(submit("chat", [1, 2], **SLO))
    events = []
    while not engine.idle:
        clock.now_s += 1.0
        events += engine.step()
    times = [event.chosen_s for event in events]
    assert times == sorted(times)
    assert times[-1] == clock.now_s


class Telling:
    """A policy that tells how it controls itself."""

    state = PolicyState(quantile=0.98, widening=1.25, slack_share=0.05, burn=2.0)

    def __init__(self, policy):
        self.policy = policy

    def __getattr__(self, name):
        return getattr(self.policy, name)


def test_how_the_error_budget_controls_the_policy_is_reported():
    engine = engine_with(AdmissionMode.OFF, Clock())
    engine.policy = Telling(engine.policy)
    stats = Reporter(engine, LAYERS, 1, 50.0).report(51.0)
    assert (stats.margin_quantile, stats.margin_widening) == (0.98, 1.25)
    assert (stats.error_budget_slack_share, stats.error_budget_burn) == (0.05, 2.0)


class Listening:
    """A policy, and what its slow loop is told."""

    def __init__(self, policy):
        self.policy, self.seen = policy, []

    def judged(self, service, attained, now_s):
        self.seen.append((service, attained))

    def __getattr__(self, name):
        return getattr(self.policy, name)


def test_who_delivers_judges():
    clock = Clock()
    engine = engine_with(AdmissionMode.OFF, clock)
    engine.policy = judge = Listening(engine.policy)
    late = {"received_s": clock.now_s - 3.0, **SLO}
    engine.submit(submit("here", [1, 2], **late))
    engine.submit(submit("there", [1, 2], sender_judges=True, **late))
    run(engine)
    assert judge.seen == [("default/ls", False)]
    engine.judged("default/ls", True)
    engine.judged("default/ls", False)
    assert [attained for _, attained in judge.seen] == [False, True, False]
    assert engine.missed["default/ls"] == 2


def test_every_service_is_judged_by_its_own_objective():
    engine = engine_with(AdmissionMode.OFF, Clock())
    engine.policy = judge = Listening(engine.policy)
    strict = {"objective_percent": 90, "objective_window_s": 20, **SLO}
    engine.submit(submit("strict", [1, 2], service="team/strict", **strict))
    engine.submit(submit("plain", [1, 2], **SLO))
    objectives = [engine.intake.find(name).job.objective for name in ("strict", "plain")]
    assert objectives == [Objective(0.9, 20.0), Objective(0.99, 300.0)]
    run(engine)
    assert sorted(judge.seen) == [("default/ls", True), ("team/strict", True)]


def test_first_tokens_come_before_the_others():
    engine = engine_with(AdmissionMode.OFF, Clock())
    engine.submit(submit("early", [1, 2], **SLO))
    while engine.intake.find("early").output_tokens < 2:
        engine.step()
    engine.submit(submit("late", [1, 2], **SLO))
    engine.submit(submit("batch", [1, 2], "BE"))
    seen, together = [], 0
    while not engine.idle:
        events = [(event.request_id, event.first) for event in engine.step()]
        together += len({first for _, first in events}) == 2
        assert events == sorted(events, key=lambda event: not event[1])
        seen += events
    assert [name for name, first in seen if first] == ["late"]
    assert together == 1  # else their order showed nothing


def test_one_request_is_explained_by_its_id_wherever_it_is():
    engine = engine_with(AdmissionMode.QUEUE, Clock())
    for number, name in enumerate(("first", "second", "third")):
        assert engine.submit(submit(name, [number, 2, 3, 4, 5], **SLO)) is None
    assert engine.submit(submit("be", [1] * 9, "BE")) is None
    found = engine.explain(["first", "third", "be", "unknown"])
    assert set(found) == {"first", "third", "be"}
    assert found["third"].startswith("admission holds it back behind 1 others")
    assert found["be"]
    run(engine)
    assert engine.explain(["first", "third"]) == {}


def test_a_request_is_judged_by_what_the_cache_leaves_of_its_prompt():
    """Twelve rows of 14 take longer than the TTFT, the last two do not."""
    engine, system = engine_with(AdmissionMode.REJECT, Clock()), [7] * 12

    def hopeless(last):
        prepared = engine.intake.prepare(submit("asked", [*system, last, 2], **SLO), 50.0)
        return engine.door.gate.hopeless(prepared.job)

    assert hopeless(1)
    engine.submit(submit("first", [*system, 1, 2], **SLO))
    run(engine)
    assert not hopeless(3)
    for number in range(4, 7):
        assert engine.submit(submit(f"n{number}", [*system, number, 2], **SLO)) is None
    assert len(run(engine).finished) == 3
    check_no_leak(engine)


def test_what_the_first_of_those_held_back_finds_is_looked_up_again():
    engine, seen = engine_with(AdmissionMode.QUEUE, Clock()), []
    for number, name in enumerate(("first", "second", "third")):
        engine.submit(submit(name, [number, 2, 3, 4, 5], **SLO))
    engine.intake.look_up = lambda request: seen.append(request.submit.request_id)
    engine.door.step(50.0)
    assert seen == ["second"]
