"""Engine lives with a real process that speaks the protocol."""

import asyncio
import dataclasses
import os
import signal

import pytest

from omniserve_agent.engine.messages import ServiceClass
from omniserve_agent.serving import EngineUnavailableError, RequestRefusedError

LS = ServiceClass.LS


def numbered(count):
    return [1000 + index for index in range(count)]


def test_tokens_arrive_in_order_and_the_figures_with_them(run, started, submit, commands):
    async def scenario():
        async with started() as node:
            await node.ready()
            requests = [submit(f"r{n}", [commands.PLAIN], 20) for n in range(3)]
            requests.append(submit("ls", [commands.PLAIN], 20, LS))
            for tokens in await asyncio.gather(*map(node.tokens, requests)):
                assert tokens == numbered(20)
            await node.until(lambda: node.client.stats and node.client.stats.iterations == 4)
            assert node.client.progress == "ready"
            assert node.client.restarts == 0
            assert node.client.active == 0

    run(scenario())


def test_closing_a_stream_cancels_in_the_engine(run, started, submit, commands):
    async def scenario():
        async with started() as node:
            await node.ready()
            stream = node.client.stream(submit("gone", [commands.GATE]))
            reading = asyncio.create_task(anext(stream))
            await node.until(lambda: node.client.stats and node.client.stats.iterations == 1)
            reading.cancel()
            await asyncio.wait({reading})
            await stream.aclose()
            await node.until(lambda: node.client.stats.joins == 1)
            assert await node.tokens(submit("next", [commands.OPEN])) == numbered(5)
            assert node.client.active == 0

    run(scenario())


@pytest.mark.parametrize(("command", "reason"), [("FULL", "queue_full"), ("LONG", "too_long")])
def test_a_refusal_reaches_the_caller(run, started, submit, commands, command, reason):
    async def scenario():
        async with started() as node:
            await node.ready()
            with pytest.raises(RequestRefusedError) as refused:
                await node.tokens(submit("r", [getattr(commands, command)]))
            assert refused.value.reason == reason
            assert node.client.active == 0

    run(scenario())


def test_a_crash_ends_ls_and_replays_be_without_loss_or_repetition(run, started, submit, commands):
    async def scenario():
        async with started() as node:
            await node.ready()
            gated = asyncio.create_task(node.tokens(submit("ls", [commands.GATE], 5, LS)))
            kept = asyncio.create_task(node.tokens(submit("be", [commands.PLAIN], 200)))
            await node.until(lambda: node.client.stats and node.client.stats.iterations == 2)
            crashing = await node.tokens(submit("poison", [commands.CRASH, 7], 30))
            assert crashing == numbered(30)
            assert await kept == numbered(200)
            with pytest.raises(EngineUnavailableError, match="exited with code 9"):
                await gated
            assert node.client.restarts == 1
            assert await node.tokens(submit("after", [commands.PLAIN], 5, LS)) == numbered(5)

    run(scenario())


def test_replays_of_one_request_are_bounded(run, started, submit, commands):
    async def scenario():
        async with started(max_replays=2) as node:
            stream = node.client.stream(submit("r", [commands.ERODE], 30))
            tokens = [(await anext(stream)).token_ids for _ in range(3)]
            assert tokens == [[1000], [1001], [1002]]  # one per life
            with pytest.raises(EngineUnavailableError, match="replayed 2 times"):
                await anext(stream)
            assert node.clock.slept[:2] == [0.5, 1.0]

    run(scenario())


def test_a_killed_engine_comes_back(run, started, submit, commands):
    async def scenario():
        async with started() as node:
            await node.ready()
            children = os.listdir(node.supervisor.directory)
            waiting = asyncio.create_task(node.tokens(submit("be", [commands.GATE], 5)))
            await node.until(lambda: node.client.stats and node.client.stats.iterations == 1)
            os.kill(engine_pid(), signal.SIGKILL)
            await node.until(lambda: node.client.restarts == 1)
            await node.ready()
            assert await node.tokens(submit("open", [commands.OPEN])) == numbered(5)
            assert await waiting == numbered(5)
            assert not set(children) & set(os.listdir(node.supervisor.directory))

    run(scenario())


def engine_pid():
    """The one child of this process."""
    children = f"/proc/self/task/{os.getpid()}/children"
    with open(children) as file:
        return int(file.read().split()[0])


def test_a_silent_engine_is_killed_after_the_heartbeat(run, started, submit, commands):
    async def scenario():
        async with started() as node:
            await node.ready()
            hanging = asyncio.create_task(node.tokens(submit("r", [commands.HANG], 5, LS)))
            await node.until(lambda: node.client.active == 1)
            for _ in range(200):  # messages sent before the hang may still be on their way
                node.clock.now += 31
                await asyncio.sleep(0.05)
                if node.client.restarts:
                    break
            with pytest.raises(EngineUnavailableError, match="sent nothing for"):
                await hanging
            await node.ready()
            assert await node.tokens(submit("next", [commands.PLAIN])) == numbered(5)

    run(scenario())


def test_a_permanent_failure_is_not_tried_again(run, started, submit, commands):
    async def scenario():
        async with started("fail") as node:
            waiting = asyncio.create_task(node.tokens(submit("be", [commands.PLAIN])))
            await node.task
            line = "the model has no weights; name another"
            assert node.supervisor.failure == node.client.progress == line
            with pytest.raises(EngineUnavailableError, match="no weights"):
                await waiting
            with pytest.raises(EngineUnavailableError, match="no weights"):
                await node.tokens(submit("be2", [commands.PLAIN]))
            assert node.client.restarts == 0
            assert node.clock.slept == []

    run(scenario())


def test_starts_that_fail_again_and_again_are_given_up(run, started):
    async def scenario():
        async with started("die", max_failures=3) as node:
            await node.task
            assert "exited with code 3" in node.supervisor.failure
            assert "4 failures in a row" in node.supervisor.failure
            assert node.clock.slept == [0.5, 1.0, 2.0]

    run(scenario())


@pytest.mark.parametrize(
    ("mode", "cause"),
    [
        ("trip", "died of KeyError: 0"),
        ("crash", "the engine was killed by SIGILL"),
        ("garbage", "the engine's link failed: "),
    ],
)
def test_a_start_that_fails_twice_alike_is_not_tried_again(run, started, mode, cause):
    async def scenario():
        async with started(mode) as node:
            await node.task
            assert node.supervisor.failure.startswith(cause)
            assert node.supervisor.failure.endswith("; two starts in a row failed so")
            assert node.clock.slept == [0.5]

    run(scenario())


def test_starts_that_fail_in_another_way_each_time_go_on_to_the_limit(run, started):
    async def scenario():
        async with started("vary", max_failures=3) as node:
            await node.task
            assert node.supervisor.failure.startswith("died of KeyError: 4; 4 failures in a row")
            assert node.clock.slept == [0.5, 1.0, 2.0]

    run(scenario())


def test_an_engine_that_was_ready_once_has_all_its_restarts(run, started, submit, commands):
    async def scenario():
        async with started("relapse", max_failures=3) as node:
            await node.ready()
            with pytest.raises(EngineUnavailableError, match="exited with code 9"):
                await node.tokens(submit("poison", [commands.CRASH, 1], 5, LS))
            await node.task
            assert node.supervisor.failure.startswith("died of KeyError: 0; 4 failures in a row")
            assert node.clock.slept == [0.5, 1.0, 2.0]

    run(scenario())


def test_an_engine_that_talks_nonsense_is_replaced(run, started):
    async def scenario():
        async with started("garbage", max_failures=1) as node:
            await node.task
            assert "link failed" in node.supervisor.failure

    run(scenario())


def test_stop_shuts_the_engine_down(run, started, submit, commands):
    async def scenario():
        async with started() as node:
            await node.ready()
            pid = engine_pid()
            gated = asyncio.create_task(node.tokens(submit("be", [commands.GATE])))
            await node.until(lambda: node.client.stats and node.client.stats.iterations == 1)
            node.supervisor.stop()
            await node.task
            with pytest.raises(EngineUnavailableError, match="stopping"):
                await gated
            assert not os.path.exists(f"/proc/{pid}")
            assert node.supervisor.failure is None

    run(scenario())


def test_an_engine_deaf_to_shutdown_is_killed(run, started, submit, commands):
    async def scenario():
        async with started() as node:
            await node.ready()
            pid = engine_pid()
            await node.tokens(submit("r", [commands.DEAF]))
            patience = dataclasses.replace(node.supervisor.supervision, stop_s=0.1)
            node.supervisor.supervision = patience
            node.supervisor.stop()
            await node.task
            assert not os.path.exists(f"/proc/{pid}")

    run(scenario())
