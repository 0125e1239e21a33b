"""Disconnects, bounds, keys, changes at run time, connections' age and the end."""

import asyncio
import subprocess
import sys

import aiohttp
import pytest

from omniserve_agent.engine.messages import ServiceClass, TokenEvent
from omniserve_agent.http.app import make_app
from omniserve_agent.http.registry import ServiceRegistry
from omniserve_agent.http.server import start
from omniserve_agent.http.settings import HttpSettings
from omniserve_agent.http.state import STATE
from omniserve_agent.http.statusz import service_report


async def until(condition):
    """Polls; the test's own limit bounds it."""
    while not condition():
        await asyncio.sleep(0.005)


@pytest.fixture
def endless(tokenizer):
    """One token, then nothing until the gate opens."""

    def make(gate):
        def script(submit):
            yield TokenEvent(request_id=submit.request_id, token_ids=tokenizer.encode("Hello"))
            yield gate
            yield TokenEvent(request_id=submit.request_id, finish_reason="stop")

        return script

    return make


@pytest.mark.parametrize("stream", [True, False])
async def test_a_disconnect_cancels(engine, service, serving, endless, stream):
    backend = engine(endless(asyncio.Event()))
    async with serving([service(backend)]) as client:
        body = {"model": "chat", "prompt": "x", "stream": stream, "n": 2}
        async with aiohttp.ClientSession() as session:
            call = asyncio.create_task(session.post(f"{client.url}/v1/completions", json=body))
            await until(lambda: len(backend.submits) == 2)
            if stream:
                await (await call).content.readline()
            call.cancel()
        await until(lambda: len(backend.closed) == 2)
        state = client.app[STATE]
        await until(lambda: state.in_flight == 0)
        tally = state.books.tally(state.registry.services[0])
        assert (tally.total.cancelled, tally.total.offered) == (2, 0)
        assert (tally.waiting, tally.running) == (0, 0)
    assert {s.request_id for s in backend.submits} == set(backend.closed)


async def test_bearer_keys(engine, service, serving, say):
    backend = engine(say("x"))
    services = [
        service(backend, api_keys=frozenset({"secret-1", "secret-2"})),
        service(backend, name="open"),
    ]
    async with serving(services) as client:
        for header, status in [
            (None, 401),
            ("Bearer wrong", 401),
            ("Bearer secret-", 401),
            ("Basic secret-1", 401),
            ("Bearer gr\u00fc\u00df", 401),
            ("Bearer secret-1", 200),
            ("bearer secret-2", 200),
        ]:
            headers = {"Authorization": header} if header else {}
            found, answer, sent = await client.post(
                "/v1/completions", json={"model": "chat", "prompt": "x"}, headers=headers
            )
            assert found == status, header
            if status == 401:
                assert answer["error"]["code"] == "invalid_api_key"
                assert ("missing" in answer["error"]["message"]) == (
                    not (header or "").startswith("Bearer")
                )
                assert sent["WWW-Authenticate"] == "Bearer"
        _, listed, _ = await client.get("/v1/models")
        assert [m["id"] for m in listed["data"]] == ["open"]
        _, listed, _ = await client.get("/v1/models", headers={"Authorization": "Bearer secret-1"})
        assert [m["id"] for m in listed["data"]] == ["chat", "open"]
        assert (await client.get("/v1/models/chat"))[0] == 401
        _, answer, _ = await client.complete(model="none")
        assert "chat" not in answer["error"]["message"]


async def test_a_closed_server_lists_nothing_without_a_key(engine, service, serving, say):
    closed = service(engine(say("x")), api_keys=frozenset({"k"}))
    async with serving([closed]) as client:
        assert (await client.get("/v1/models"))[0] == 401


async def test_paused(engine, service, serving, say):
    async with serving([service(engine(say("x")), paused=True)]) as client:
        status, answer, headers = await client.complete()
        assert (status, answer["error"]["code"]) == (503, "service_paused")
        assert int(headers["Retry-After"]) == 60
        assert (await client.get("/readyz"))[0] == 200
        assert (await client.get("/readyz/default/chat"))[0] == 503
        _, text, _ = await client.get("/metrics")
    assert 'requests_total{class="LS",outcome="paused",service="default/chat"} 1.0' in text
    assert 'slo_offered_total{class="LS",service="default/chat"} 0.0' in text


async def test_too_many_requests_in_flight(engine, service, serving, endless):
    gate = asyncio.Event()
    backend = engine(endless(gate))
    async with serving([service(backend)], settings=HttpSettings(max_requests=1)) as client:
        first = asyncio.create_task(client.complete())
        await until(lambda: backend.submits)
        status, answer, headers = await client.complete()
        assert (status, answer["error"]["code"]) == (429, "queue_full")
        assert int(headers["Retry-After"]) >= 1
        gate.set()
        assert (await first)[0] == 200
        assert (await client.complete())[0] == 200


async def test_engine_away_refuses_ls_and_lets_be_wait(engine, service, serving, say):
    backend = engine(say("x"))
    services = [service(backend), service(backend, name="batch", service_class=ServiceClass.BE)]
    async with serving(services) as client:
        assert (await client.complete(model="batch"))[0] == 200
        backend.ready, backend.progress = None, "restarting after exit code 9"
        status, answer, headers = await client.complete()
        assert status == 503
        assert "restarting after exit code 9" in answer["error"]["message"]
        assert "Retry-After" in headers
        assert (await client.complete(model="batch"))[0] == 200


async def test_a_silent_engine_times_out(engine, service, serving, endless):
    backend = engine(endless(asyncio.Event()))
    settings = HttpSettings(ls_silence_s=0.01)
    async with serving([service(backend)], settings=settings) as client:
        status, answer, _ = await client.complete()
        _, report, _ = await client.get("/statusz")
    assert (status, answer["error"]["type"]) == (504, "timeout_error")
    assert report["services"][0]["total"]["failed"] == 1
    assert len(backend.closed) == 1


async def test_services_change_while_requests_run(engine, service, serving, endless, say):
    gate = asyncio.Event()
    backend, other = engine(endless(gate)), engine(say("x"))
    registry = ServiceRegistry([service(backend)])
    async with serving(registry) as client:
        running = asyncio.create_task(client.complete())
        await until(lambda: backend.submits)
        demoted = service(backend, service_class=ServiceClass.BE)
        registry.replace([demoted, service(other, name="new")])
        assert (await client.complete(model="new"))[0] == 200
        gate.set()
        assert (await running)[0] == 200
        assert (await client.complete())[0] == 200
        assert [s.service_class for s in backend.submits] == [ServiceClass.LS, ServiceClass.BE]
        assert service_report(client.app[STATE], demoted)["total"]["finished"] == 1
        assert [name for name, _ in registry.engines] == ["engine-0", "engine-1"]
        registry.replace([service(other, name="new")])
        assert [name for name, _ in registry.engines] == ["engine-1"]
        assert (await client.complete())[0] == 404


def test_a_served_name_belongs_to_one_service(engine, service, say):
    backend = engine(say("x"))
    twins = [service(backend, name=name, served_name="a") for name in ("chat", "b")]
    with pytest.raises(ValueError, match="'a' is used by default/chat and default/b"):
        ServiceRegistry(twins)


def test_services_with_ports_of_their_own_may_share_a_name(engine, service, say):
    backend = engine(say("x"))
    twins = [service(backend, name=name, served_name="a") for name in ("chat", "b")]
    registry = ServiceRegistry(twins, routes=False)
    assert [s.key for s in registry.services] == ["default/chat", "default/b"]
    assert registry.with_key("default/b") is twins[1]
    assert registry.served_as("a") is None


async def test_a_service_without_its_keys_is_shut(engine, service, serving, say):
    shut = service(engine(say("x")), requires_key=True)
    async with serving([shut]) as client:
        assert (await client.complete())[0] == 401
        assert (await client.get("/v1/models"))[0] == 401


async def test_another_object_of_the_same_name_begins_new_figures(engine, service, serving, say):
    backend = engine(say("x"))
    registry = ServiceRegistry([service(backend, uid="1")])
    async with serving(registry) as client:
        assert (await client.complete())[0] == 200
        again = service(backend, uid="2")
        registry.replace([again])
        assert service_report(client.app[STATE], again)["total"]["finished"] == 0


async def test_a_drained_server_listens_on_and_can_take_requests_again(engine, service, say):
    server = await start(make_app([service(engine(say("x")))]), "127.0.0.1", 0)
    async with aiohttp.ClientSession() as session:

        async def status():
            url = f"http://127.0.0.1:{server.port}/v1/completions"
            async with session.post(url, json={"model": "chat", "prompt": "a"}) as response:
                return response.status

        assert await status() == 200
        await server.drain(0.0)
        assert await status() == 503
        server.state.draining = False
        assert await status() == 200
        await server.shut()
        assert await status() == 503  # on a connection that was there
        with pytest.raises(OSError, match="Connect"):
            await asyncio.open_connection("127.0.0.1", server.port)
        await server.stop(0.0)


async def test_connections_close_after_some_requests(engine, service, serving, say):
    settings = HttpSettings(requests_per_connection=3)
    async with serving([service(engine(say("x")))], settings=settings) as client:
        closes = [(await client.get("/healthz"))[2].get("Connection") for _ in range(4)]
    assert closes == [None, None, "close", None]


async def test_stop_drains_streams_and_takes_no_more(engine, service, serving, endless):
    gate = asyncio.Event()
    backend = engine(endless(gate))
    async with serving([service(backend)]) as client:
        body = {"model": "chat", "prompt": "x", "stream": True}
        async with client.session.post(f"{client.url}/v1/completions", json=body) as response:
            await response.content.readline()
            stopping = asyncio.create_task(client.server.stop(grace_s=20))
            await until(lambda: client.app[STATE].draining)
            gate.set()
            assert (await response.text()).rstrip().endswith("[DONE]")
        await stopping
        with pytest.raises(aiohttp.ClientConnectionError):
            await client.complete()


async def test_stop_ends_what_outlasts_the_grace_period(engine, service, serving, endless):
    backend = engine(endless(asyncio.Event()))
    async with serving([service(backend)]) as client:
        body = {"model": "chat", "prompt": "x", "stream": True}
        async with client.session.post(f"{client.url}/v1/completions", json=body) as response:
            await response.content.readline()
            stopping = asyncio.create_task(client.server.stop(grace_s=0))
            rest = await response.text()
        await stopping
    assert '"code":"shutting_down"' in rest
    assert "[DONE]" not in rest
    assert len(backend.closed) == 1


async def test_a_drain_can_be_cut_short(engine, service, serving, endless):
    backend = engine(endless(asyncio.Event()))
    at_once = asyncio.Event()
    async with serving([service(backend)]) as client:
        body = {"model": "chat", "prompt": "x", "stream": True}
        async with client.session.post(f"{client.url}/v1/completions", json=body) as response:
            await response.content.readline()
            stopping = asyncio.create_task(client.server.stop(3600, at_once))
            await until(lambda: client.app[STATE].draining)
            at_once.set()
            rest = await response.text()
        await stopping
    assert '"code":"shutting_down"' in rest


async def test_draining_refuses_on_open_connections(engine, service, serving, say):
    async with serving([service(engine(say("x")))]) as client:
        client.app[STATE].draining = True
        status, answer, headers = await client.complete()
        assert (status, answer["error"]["code"]) == (503, "shutting_down")
        assert headers["Connection"] == "close"
        assert (await client.get("/readyz"))[0] == 503
        for path in ("/healthz", "/health"):
            assert (await client.get(path))[:2] == (200, {"status": "ok"})


async def test_long_texts_are_tokenised_in_a_thread(engine, service, serving, say, monkeypatch):
    backend = engine(say("x"))
    settings = HttpSettings(threaded_tokenizing_chars=10)
    async with serving([service(backend)], settings=settings) as client:
        pool = client.app[STATE].tokenizing
        ran = []
        original = pool._run
        monkeypatch.setattr(pool, "_run", lambda work: ran.append(1) or original(work))
        assert (await client.complete(prompt="Hello"))[0] == 200
        assert ran == []
        assert (await client.complete(prompt="Hello world, Hello"))[0] == 200
        assert ran == [1]


async def test_a_dropped_request_does_not_wait_for_ever(engine, service, serving):
    settings = HttpSettings(keep_alive_comment_s=0.01)
    backend = engine(lambda _: [asyncio.CancelledError()])
    async with serving([service(backend)], settings=settings) as client:
        status, answer, _ = await client.complete()
    assert (status, answer["error"]["code"]) == (503, "engine_unavailable")


def test_http_loads_neither_torch_nor_transformers():
    code = (
        "import sys, omniserve_agent.http.app, omniserve_agent.http.server;"
        "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr
