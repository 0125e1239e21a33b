"""Requests across engine lives, without a process: the test plays supervisor and engine."""

import asyncio

import pytest

from omniserve_agent.engine.messages import (
    Cancel,
    Explain,
    Explained,
    Failed,
    Judged,
    Loading,
    Outputs,
    Ready,
    Refused,
    ServiceClass,
    Stats,
    Submit,
    TokenEvent,
    TokenLogprob,
)
from omniserve_agent.node.engine_client import EngineClient
from omniserve_agent.node.requests import Mailbox, merged
from omniserve_agent.serving import EngineUnavailableError, RequestRefusedError

LS = ServiceClass.LS
READY = Ready(
    device="cpu",
    dtype="float32",
    max_request_tokens={},
    device_kv_tokens=1,
    host_kv_tokens=1,
    isa="none",
    load_seconds=0.0,
)


class Engine:
    """The client's other side: what was sent, by life."""

    def __init__(self, client):
        self.client = client
        self.sent = []

    def start(self):
        self.sent = []
        self.client.attach(self.sent.append)

    def be_ready(self):
        self.start()
        self.client.receive(READY)

    def emit(self, request_id, *token_ids, finish=None, **fields):
        event = TokenEvent(
            request_id=request_id, token_ids=list(token_ids), finish_reason=finish, **fields
        )
        self.client.receive(Outputs([event]))

    def submitted(self):
        return [message.request_id for message in self.sent if isinstance(message, Submit)]


@pytest.fixture
def engine():
    return Engine(EngineClient("engine0", max_replays=2, max_waiting=2))


async def reading(engine, submit):
    """A task that collects a request's tokens, already submitted when this returns."""

    async def collect():
        return [token async for event in engine.client.stream(submit) for token in event.token_ids]

    task = asyncio.create_task(collect())
    await asyncio.sleep(0)
    return task


def test_ls_fails_at_once_while_the_engine_is_away_and_be_waits(run, engine, submit):
    async def scenario():
        with pytest.raises(EngineUnavailableError, match="has not been started"):
            await anext(engine.client.stream(submit("ls", [1], service_class=LS)))
        be = await reading(engine, submit("be", [1]))
        engine.start()
        engine.client.receive(Loading("reading weights", 0.25))
        with pytest.raises(EngineUnavailableError, match="reading weights: 25%"):
            await anext(engine.client.stream(submit("ls", [1], service_class=LS)))
        assert engine.sent == []
        engine.client.receive(READY)
        assert engine.submitted() == ["be"]
        engine.emit("be", 7, finish="stop")
        assert await be == [7]

    run(scenario())


def test_what_waits_for_an_engine_is_bounded(run, engine, submit):
    async def scenario():
        tasks = [await reading(engine, submit(f"r{n}", [1])) for n in range(2)]
        with pytest.raises(RequestRefusedError, match="the limit is 2") as refused:
            await anext(engine.client.stream(submit("r2", [1])))
        assert refused.value.reason == "queue_full"
        assert engine.client.active == 2
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert engine.client.active == 0
        engine.be_ready()
        assert engine.sent == []

    run(scenario())


def test_a_replay_continues_from_what_was_emitted(run, engine, submit):
    async def scenario():
        engine.be_ready()
        task = await reading(engine, submit("be", [5, 6], max_tokens=4))
        engine.emit("be", 10, 11)
        engine.client.detach("crashed")
        assert engine.client.ready is None
        assert engine.client.stats is None
        engine.be_ready()
        (again,) = engine.sent
        assert (again.prompt, again.emitted, again.max_tokens) == ([5, 6], [10, 11], 4)
        engine.emit("be", 12)
        engine.emit("be", 13, finish="length")
        assert await task == [10, 11, 12, 13]
        assert engine.client.restarts == 1

    run(scenario())


def test_a_request_is_replayed_so_often_and_no_more(run, engine, submit):
    async def scenario():
        task = await reading(engine, submit("be", [1]))
        for _ in range(3):
            engine.be_ready()
            assert engine.submitted() == ["be"]
            engine.client.detach("crashed")
        with pytest.raises(EngineUnavailableError, match=r"crashed; .*replayed 2 times"):
            await task
        engine.be_ready()
        assert engine.sent == []

    run(scenario())


def test_waiting_for_an_engine_costs_no_replay(run, engine, submit):
    async def scenario():
        task = await reading(engine, submit("be", [1]))
        for _ in range(9):
            engine.start()
            engine.client.detach("crashed while loading")
        engine.be_ready()
        engine.emit("be", 1, finish="stop")
        assert await task == [1]

    run(scenario())


def test_all_tokens_delivered_but_the_end_lost_ends_the_request(run, engine, submit):
    async def scenario():
        engine.be_ready()
        task = await reading(engine, submit("be", [1], max_tokens=2))
        engine.emit("be", 3, 4)
        engine.client.detach("crashed")
        assert await task == [3, 4]
        engine.be_ready()
        assert engine.sent == []

    run(scenario())


def test_replays_never_overfill_the_engine_queue(run, submit):
    async def scenario():
        engine = Engine(EngineClient("engine0", max_replays=2, max_waiting=2))
        engine.be_ready()
        tasks = [await reading(engine, submit(f"r{n}", [1])) for n in range(5)]
        assert engine.submitted() == ["r0", "r1", "r2", "r3", "r4"]
        engine.client.detach("crashed")
        engine.be_ready()
        assert engine.submitted() == ["r0", "r1"]
        engine.emit("r0", 1)
        assert engine.submitted() == ["r0", "r1", "r2"]
        engine.client.receive(Refused(request_id="r2", reason="queue_full", message="full"))
        assert engine.submitted() == ["r0", "r1", "r2"]
        engine.client.receive(Stats(services={}))
        assert engine.submitted() == ["r0", "r1", "r2", "r2"]
        for name in ("r0", "r1", "r2", "r3", "r4"):
            engine.emit(name, 2, finish="stop")
        assert [await task for task in tasks] == [[1, 2], [2], [2], [2], [2]]
        assert engine.submitted()[4:] == ["r3", "r4"]

    run(scenario())


def test_a_new_request_is_refused_when_the_engine_queue_is_full(run, engine, submit):
    async def scenario():
        engine.be_ready()
        task = await reading(engine, submit("be", [1]))
        engine.client.receive(
            Refused(request_id="be", reason="queue_full", message="full", retry_after_s=4.0)
        )
        with pytest.raises(RequestRefusedError, match="full") as refused:
            await task
        assert refused.value.retry_after_s == 4.0

    run(scenario())


def test_newcomers_queue_behind_those_held(run, engine, submit):
    async def scenario():
        first = await reading(engine, submit("first", [1]))
        second = await reading(engine, submit("second", [1]))
        third = Engine(engine.client)
        engine.be_ready()
        late = await reading(engine, submit("late", [1]))
        assert engine.submitted() == ["first", "second", "late"]
        engine.client.detach("crashed")
        engine.be_ready()
        latest = await reading(engine, submit("latest", [1]))
        assert engine.submitted() == ["first", "second"]
        engine.emit("first", 1, finish="stop")
        engine.emit("second", 1, finish="stop")
        assert engine.submitted() == ["first", "second", "late", "latest"]
        third.emit("late", 2, finish="stop")
        engine.emit("latest", 3, finish="stop")
        assert [await task for task in (first, second, late, latest)] == [[1], [1], [2], [3]]

    run(scenario())


def test_cancel_reaches_the_engine_once_and_late_tokens_are_dropped(run, engine, submit):
    async def scenario():
        engine.be_ready()
        task = await reading(engine, submit("be", [1]))
        task.cancel()
        await asyncio.wait({task})
        assert engine.sent[1:] == [Cancel("be")]
        engine.emit("be", 1)
        assert engine.client.active == 0
        done = await reading(engine, submit("done", [1]))
        engine.emit("done", 1, finish="stop")
        await done
        assert Cancel("done") not in engine.sent

    run(scenario())


def test_an_id_in_use_is_refused_and_leaves_the_first_alone(run, engine, submit):
    async def scenario():
        engine.be_ready()
        task = await reading(engine, submit("same", [1]))
        with pytest.raises(RequestRefusedError, match="'same' is in use"):
            await anext(engine.client.stream(submit("same", [1])))
        engine.emit("same", 1, finish="stop")
        assert await task == [1]
        assert len(engine.sent) == 1

    run(scenario())


def test_judgements_reach_an_engine_that_is_there(engine):
    engine.client.judged("team/chat", False)
    engine.start()
    engine.client.judged("team/chat", False)
    assert engine.sent == []
    engine.be_ready()
    engine.client.judged("team/chat", True)
    assert engine.sent == [Judged("team/chat", True)]


def test_giving_up_ends_everything_now_and_later(run, engine, submit):
    async def scenario():
        waiting = await reading(engine, submit("be", [1]))
        engine.start()
        engine.client.receive(Failed("no weights"))
        engine.client.give_up("no weights")
        for request in (waiting, await reading(engine, submit("later", [1]))):
            with pytest.raises(EngineUnavailableError, match="no weights"):
                await request
        assert engine.client.active == 0

    run(scenario())


def test_prefixes_are_salted_by_namespace(run, engine, submit):
    async def scenario():
        engine.be_ready()
        for name, service, salt in (
            ("a", "red/x", ""),
            ("b", "red/y", ""),
            ("c", "blue/x", ""),
            ("d", "blue/x", "mine"),
        ):
            await reading(engine, submit(name, [1], service=service, cache_salt=salt))
        red, also_red, blue, own = [message.cache_salt for message in engine.sent]
        assert red == also_red
        assert red != blue
        assert own == "mine"
        engine.client.give_up("done")

    run(scenario())


def test_cached_tokens_count_once_over_replays(run, engine, submit):
    async def scenario():
        async def cached():
            return [e.cached_tokens async for e in engine.client.stream(submit("be", [1]))]

        engine.be_ready()
        task = asyncio.create_task(cached())
        await asyncio.sleep(0)
        engine.emit("be", 1, cached_tokens=16)
        await asyncio.sleep(0)
        engine.client.detach("crashed")
        engine.be_ready()
        engine.emit("be", 2, cached_tokens=32)
        engine.emit("be", 3, finish="stop")
        assert sum(await task) == 16

    run(scenario())


def test_a_late_reader_gets_one_merged_event_and_then_the_error(run):
    async def scenario():
        mailbox = Mailbox()
        for token in (1, 2, 3):
            mailbox.put(
                TokenEvent(
                    request_id="r",
                    token_ids=[token],
                    logprobs=[TokenLogprob(token, -1.0)],
                    cached_tokens=4 if token == 1 else 0,
                )
            )
        mailbox.fail(EngineUnavailableError("gone"))
        event = await mailbox.take()
        assert event.token_ids == [1, 2, 3]
        assert [logprob.token_id for logprob in event.logprobs] == [1, 2, 3]
        assert event.cached_tokens == 4
        with pytest.raises(EngineUnavailableError, match="gone"):
            await mailbox.take()

    run(scenario())


def test_merging_keeps_the_end(run):
    event = merged(
        TokenEvent(request_id="r", token_ids=[1]),
        TokenEvent(request_id="r", finish_reason="stop"),
    )
    assert (event.token_ids, event.finish_reason, event.logprobs) == ([1], "stop", None)


def test_one_request_is_asked_for_and_the_engines_answer_comes_back(run, engine, submit):
    async def scenario():
        engine.be_ready()
        task = await reading(engine, submit("be", [1]))
        question = asyncio.create_task(engine.client.explain(["be", "unknown"]))
        await asyncio.sleep(0)
        assert engine.sent[-1] == Explain(1, ["be"])
        engine.client.receive(Explained(7, {"be": "of another question"}))
        engine.client.receive(Explained(1, {"be": "it waits"}))
        assert await question == {"be": "it waits"}
        assert await engine.client.explain(["unknown"]) == {}
        engine.emit("be", 7, finish="stop")
        assert await task == [7]

    run(scenario())


def test_what_the_agent_itself_holds_back_needs_no_engine(run, engine, submit):
    async def scenario():
        task = await reading(engine, submit("be", [1]))
        found = await engine.client.explain(["be"])
        assert found == {
            "be": "it waits in the agent until the engine takes requests: "
            "the engine has not been started"
        }
        engine.be_ready()
        engine.emit("be", 7, finish="stop")
        assert await task == [7]

    run(scenario())


def test_questions_are_bounded_and_end_with_their_engine(run, engine, submit):
    async def scenario():
        engine.be_ready()
        task = await reading(engine, submit("be", [1]))
        questions = [asyncio.create_task(engine.client.explain(["be"])) for _ in range(9)]
        await asyncio.sleep(0)
        with pytest.raises(RequestRefusedError, match="8 ask already"):
            await questions[8]
        engine.client.detach("it died")
        for question in questions[:8]:
            with pytest.raises(EngineUnavailableError, match="it died"):
                await question
        engine.be_ready()
        engine.emit("be", 7, finish="stop")
        assert await task == [7]

    run(scenario())
