"""Uploads that stand still: an answer in time, and nobody else waits for them."""

import asyncio
from contextlib import asynccontextmanager

import aiohttp
import pytest

from omniserve_agent.http import bodies, decoding
from omniserve_agent.http.errors import ApiError
from omniserve_agent.http.settings import HttpSettings
from omniserve_agent.http.state import STATE

HEADERS = (
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n"
    b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n"
)


async def until(condition):
    while not condition():
        await asyncio.sleep(0.005)


@asynccontextmanager
async def stuck(client, count):
    """So many connections that have sent headers and no body."""
    port = int(client.url.rpartition(":")[2])
    pairs = [await asyncio.open_connection("127.0.0.1", port) for _ in range(count)]
    try:
        for _, writer in pairs:
            writer.write(HEADERS)
        yield [reader for reader, _ in pairs]
    finally:
        for _, writer in pairs:
            writer.close()


async def completed(client):
    body = {"model": "chat", "prompt": "x"}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{client.url}/v1/completions", json=body) as answer,
    ):
        return answer.status


async def test_they_are_not_in_flight(engine, service, serving, say):
    one = HttpSettings(max_requests=1)
    async with serving([service(engine(say("Hello")))], settings=one) as client:
        state = client.app[STATE]
        async with stuck(client, 3):
            await until(lambda: len(state.bodies) == 3)
            assert state.in_flight == 0
            assert await completed(client) == 200


async def test_they_end_in_time(engine, service, serving, say, monkeypatch):
    monkeypatch.setattr(bodies, "BODY_TIMEOUT_S", 0.05)
    async with serving([service(engine(say("Hello")))]) as client, stuck(client, 1) as (reader,):
        assert b" 408 " in await reader.readline()
        assert b"request_timeout" in await reader.readuntil(b"}}")
        assert not len(client.app[STATE].bodies)


@pytest.mark.parametrize("most", [1, 2])
async def test_the_oldest_makes_room(engine, service, serving, say, monkeypatch, most):
    monkeypatch.setattr(bodies, "BODIES_AT_ONCE", most)
    async with serving([service(engine(say("Hello")))]) as client:
        state = client.app[STATE]
        async with stuck(client, most) as readers:
            await until(lambda: len(state.bodies) == most)
            assert await completed(client) == 200
            assert b" 408 " in await readers[0].readline()
            assert len(state.bodies) == most - 1


@pytest.mark.parametrize(("opening", "inner", "closing"), [('{"a":', "1", "}"), ("[", "", "]")])
async def test_deep_nesting_is_the_callers_mistake(
    engine, service, serving, say, opening, inner, closing
):
    text = '{"model": "chat", "prompt": "x", "a": ' + opening * 800 + inner + closing * 800 + "}"
    async with (
        serving([service(engine(say("x")))]) as client,
        aiohttp.ClientSession(headers={"Content-Type": "application/json"}) as session,
        session.post(f"{client.url}/v1/completions", data=text) as answer,
    ):
        assert answer.status == 400
        assert (await answer.json())["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("items", [[1] * 100_000, ["a"] * 100_000, [[1] * 100_000]])
def test_lists_without_objects_are_not_walked(items):
    count = decoding.Budget()
    body = {"model": "chat", "prompt": items, "x": items}
    assert decoding.asked(body, count) == body
    assert decoding.MAX_VALUES - count.left < 10


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [1] * 8_000_000},
        {"messages": [{"content": [1] * 1_000_000}] * 8},
        {"logit_bias": {str(i): 1 for i in range(500_000)}},
    ],
)
def test_what_is_walked_is_bounded(body):
    count = decoding.Budget()
    with pytest.raises(ApiError, match="more than"):
        decoding.asked(body, count)
    assert count.left == 0
