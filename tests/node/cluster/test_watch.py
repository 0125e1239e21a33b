"""Keeping up with the node's object over a scripted API."""

import asyncio

import pytest

from omniserve_agent.node.cluster.api import ApiError, ApiGoneError, NodeObject, node_object
from omniserve_agent.node.cluster.watch import NodeWatch, WatchPolicy


def seen(generation, uid="u", version="1"):
    return NodeObject(uid, generation, version, {"nodeUid": str(generation)})


class Script:
    """Answers of the API in order; the test ends with the last one."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.watched_from = []
        self.now_s = 0.0
        self.slept = []
        self.backs = []  # when the server answered after it had been away
        self.done = asyncio.Event()

    def take(self):
        if not self.answers:
            self.done.set()
            raise ApiError("the script is over")
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def read_node(self):
        return self.take()

    async def watch_node(self, resource_version):
        self.watched_from.append(resource_version)
        for answer in self.take():
            if isinstance(answer, Exception):
                raise answer
            yield answer

    async def sleep(self, seconds):
        self.slept.append(seconds)
        self.now_s += seconds
        if self.done.is_set():
            await asyncio.Event().wait()
        await asyncio.sleep(0)


@pytest.fixture
def follow(run):
    """Run a watch over a script; the generations that were in force, and the script."""

    def follow(*answers, **policy):
        generations = []

        async def scenario():
            script = Script(*answers)
            rules = WatchPolicy(sleep=script.sleep, clock=lambda: script.now_s, **policy)
            watch = NodeWatch(
                script,
                lambda: generations.append(watch.current and watch.current.generation),
                lambda: script.backs.append(script.now_s),
                rules,
            )
            task = asyncio.create_task(watch.run())
            await script.done.wait()
            task.cancel()
            return script

        return generations, run(scenario())

    return follow


def test_an_object_is_read_and_watched_from_there(follow):
    generations, script = follow(seen(1, version="7"), [seen(2), seen(3)])
    assert generations == [1, 2, 3]
    assert script.watched_from == ["7"]


def test_status_changes_are_no_news(follow):
    generations, _ = follow(seen(1), [seen(1, version="8"), seen(1, version="9")])
    assert generations == [1]


def test_an_older_answer_changes_nothing(follow):
    generations, _ = follow(seen(3), [seen(2)])
    assert generations == [3]


def test_an_object_made_anew_is_news(follow):
    generations, _ = follow(seen(5), [None], seen(1, uid="other"), [])
    assert generations == [5, 1]


def test_it_waits_for_an_object_that_is_not_there_yet(follow):
    generations, _ = follow(None, None, seen(1), [])
    assert generations == [1]


def test_a_forgotten_version_is_read_anew(follow):
    generations, script = follow(seen(1), [ApiGoneError("too old")], seen(2), [])
    assert generations == [1, 2]
    assert max(script.slept) <= 0.5


def test_the_last_spec_stays_while_the_server_is_away(follow):
    away = [ApiError("away")] * 12
    generations, script = follow(seen(1), [], *away, seen(2), [])
    assert generations == [1, 2]
    assert max(script.slept) <= 30.0
    assert script.slept[8] > 4 * script.slept[2]
    assert len(script.backs) == 2  # at first, and after having been away


def test_a_write_that_succeeds_ends_the_wait(run):
    async def scenario():
        script = Script(seen(1), [], ApiError("away"), seen(2), [])
        asleep, forever = asyncio.Event(), asyncio.Event()

        async def sleep(seconds):
            if watch.connected:
                await asyncio.sleep(0)
            else:
                asleep.set()
                await forever.wait()

        watch = NodeWatch(script, lambda: None, lambda: None, WatchPolicy(sleep=sleep))
        task = asyncio.create_task(watch.run())
        await asleep.wait()
        watch.take(seen(1))  # what the reporter's write returned
        while watch.current.generation != 2:
            await asyncio.sleep(0)
        task.cancel()

    run(scenario())


def test_a_deleted_object_ends_being_in_force_only_after_a_while(follow):
    generations, script = follow(seen(1), [None], *[None] * 40, gone_grace_s=60.0)
    assert generations == [1, None]
    assert script.now_s >= 60.0


def test_what_is_no_object_is_told():
    with pytest.raises(ApiError, match="sent no object but"):
        node_object({"kind": "Status"})
