"""GET /statusz/requests/ID: why one request waits, asked of the engine only then."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from omniserve_agent.engine.messages import ServiceClass


@pytest.fixture
def waiting(engine, service, serving, say):
    """A server with a request `mine` that runs until the block ends; (client, engine)."""

    @asynccontextmanager
    async def run(reason, **fields):
        gate = asyncio.Event()
        backend = engine(say("x", before=[gate]), reason=reason)
        services = [service(backend, name="batch", service_class=ServiceClass.BE)]
        async with serving(services) as client:
            sent = asyncio.create_task(
                client.post(
                    "/v1/completions",
                    json={"model": "batch", "prompt": "Hello"} | fields,
                    headers={"X-Request-Id": "mine/1"},
                )
            )
            while len(backend.submits) < fields.get("n", 1):
                await asyncio.sleep(0)
            yield client, backend
            gate.set()
            assert (await sent)[0] == 200

    return run


async def test_a_request_that_waits_says_why_and_is_only_then_asked_for(waiting):
    async with waiting("5 BE requests wait before it") as (client, backend):
        await client.get("/statusz")
        assert backend.asked == []
        status, body, _ = await client.get("/statusz/requests/mine/1")
        assert backend.asked == [[backend.submits[0].request_id]]
    assert status == 200
    assert body == {
        "id": "mine/1",
        "open": 1,
        "requests": [
            {
                "service": "default/batch",
                "class": "BE",
                "submitted": 1,
                "choices": [{"index": 0, "waits": "5 BE requests wait before it"}],
            }
        ],
    }


async def test_no_more_than_eight_choices_are_explained(waiting):
    async with waiting("", n=12) as (client, backend):
        _, body, _ = await client.get("/statusz/requests/mine/1")
    (report,) = body["requests"]
    assert report["submitted"] == 12
    assert [choice["index"] for choice in report["choices"]] == list(range(8))
    assert len(backend.asked[0]) == 8


async def test_choices_that_have_ended_are_left_out(waiting):
    async with waiting("ended") as (client, _):
        _, body, _ = await client.get("/statusz/requests/mine/1")
    assert body["requests"][0]["choices"] == []


async def test_an_unknown_id_and_one_that_has_ended_are_404(engine, service, serving, say):
    async with serving([service(engine(say("x")))]) as client:
        answered = await client.complete()
        for request_id in ("nobody", answered[2]["x-request-id"]):
            status, body, _ = await client.get(f"/statusz/requests/{request_id}")
            assert status == 404
            assert body["error"]["code"] == "request_not_found"
            assert body["error"]["type"] == "invalid_request_error"
            assert repr(request_id) in body["error"]["message"]


async def test_an_engine_that_is_gone_is_a_503(waiting):
    async with waiting(None) as (client, _):
        status, body, _ = await client.get("/statusz/requests/mine/1")
    assert status == 503
    assert body["error"]["code"] == "engine_unavailable"
