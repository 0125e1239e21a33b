"""The agent from manifests to HTTP, with a fake engine and fake preparation."""

import asyncio
import contextlib
import dataclasses
import os
import re
import signal
import socket
import sys
import tempfile
from pathlib import Path

import aiohttp
import pytest
from structlog.testing import capture_logs

from omniserve_agent.http.state import STATE
from omniserve_agent.node import agent
from omniserve_agent.node.agent import Programs
from omniserve_agent.node.errors import EngineFailedError, NodeError
from omniserve_agent.settings import Settings

HERE = Path(__file__).parent
MANIFEST = """
apiVersion: omniserve.io/v1alpha1
kind: LLMService
metadata: {name: chat}
spec: {class: LS, model: {uri: "file:///dir%(model)s"}, slo: {ttftMs: 5000, tpotMs: 1000}}
---
apiVersion: omniserve.io/v1alpha1
kind: LLMService
metadata: {name: batch}
spec: {class: BE, model: {uri: "file:///dir%(model)s"}%(extra)s}
"""


@pytest.fixture
def settings(tmp_path, model_dir):
    """Settings over a manifest of two services of one model."""

    def make(extra="", **fields):
        manifest = tmp_path / "services.yaml"
        manifest.write_text(MANIFEST % {"model": model_dir, "extra": extra})
        return Settings(files=(manifest,), port=0, device="cpu", drain_grace_s=20.0, **fields)

    return make


def programs(mode="run"):
    return Programs(
        engine=(sys.executable, str(HERE / "fake_engine.py"), "--mode", mode),
        prepare=(sys.executable, str(HERE / "fake_prepare.py")),
    )


class Client:
    def __init__(self, session, state, ports):
        self.session, self.state, self.url, self.admin = session, state, ports.url, ports.admin

    async def get(self, path):
        async with self.session.get(self.url + path) as response:
            return response.status, await response.text()

    async def complete(self, model, prompt, max_tokens=3):
        body = {"model": model, "prompt": prompt, "max_tokens": max_tokens}
        async with self.session.post(self.url + "/v1/completions", json=body) as response:
            return response.status, await response.json()

    async def until_ready(self):
        while (await self.get("/readyz"))[0] != 200:
            await asyncio.sleep(0.02)


@pytest.fixture
def serving(monkeypatch):
    """A context manager that runs the agent and yields a client and the agent's task."""

    @contextlib.asynccontextmanager
    async def serve(settings):
        bound = asyncio.get_running_loop().create_future()
        listening = agent.listening

        def noting(app, ports, *ending):
            bound.set_result((app[STATE], ports))
            return listening(app, ports, *ending)

        monkeypatch.setattr(agent, "listening", noting)
        task = asyncio.create_task(agent.serve(settings, programs()))
        async with aiohttp.ClientSession() as session:
            await asyncio.wait({bound, task}, return_when=asyncio.FIRST_COMPLETED)
            client = Client(session, *bound.result())
            await until_listening(client, task)
            try:
                yield client, task
            finally:
                if not task.done():
                    os.kill(os.getpid(), signal.SIGTERM)
                await task

    return serve


async def until_listening(client, task):
    while not task.done():
        with contextlib.suppress(aiohttp.ClientConnectionError):
            await client.get("/healthz")
            return
        await asyncio.sleep(0.02)


@pytest.fixture
def temporary(monkeypatch):
    """Where this test alone puts temporary folders; a short name, since sockets lie in there."""
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


def test_both_classes_answer_and_sigterm_leaves_nothing_behind(run, settings, serving, temporary):
    affinity = os.sched_getaffinity(0)

    async def scenario():
        async with serving(settings()) as (client, task):
            await client.until_ready()
            assert list(temporary.iterdir())
            for model in ("chat", "batch"):
                status, answer = await client.complete(model, [0])
                assert status == 200
                assert answer["usage"]["completion_tokens"] == 3
            assert (await client.complete("nobody", [0]))[0] == 404
            os.kill(os.getpid(), signal.SIGTERM)
            await task

    run(scenario())
    assert list(temporary.iterdir()) == []
    assert os.sched_getaffinity(0) == affinity


async def gated_request(client, commands):
    """A response that is open and waits until another request opens the gate."""
    await client.until_ready()
    gated = asyncio.create_task(client.complete("chat", [commands.GATE]))
    while not re.search(r'"iterations": ?1\b', (await client.get("/statusz"))[1]):
        await asyncio.sleep(0.02)
    return gated


def test_sigterm_waits_for_open_responses_and_accepts_no_others(
    run, settings, serving, commands, submit
):
    async def scenario():
        async with serving(settings()) as (client, task):
            gated = await gated_request(client, commands)
            os.kill(os.getpid(), signal.SIGTERM)
            while await listening(client.url):
                await asyncio.sleep(0.02)
            assert not gated.done()
            backend = client.state.registry.services[0].backend
            _ = [event async for event in backend.stream(submit("opener", [commands.OPEN]))]
            status, _ = await gated
            assert status == 200
            await task

    run(scenario())


def test_a_second_signal_stops_at_once(run, settings, serving, commands):
    async def scenario():
        async with serving(settings()) as (client, task):
            gated = await gated_request(client, commands)
            with capture_logs() as logs:
                os.kill(os.getpid(), signal.SIGTERM)
                while await listening(client.url):
                    await asyncio.sleep(0.02)
                assert not gated.done()
                os.kill(os.getpid(), signal.SIGINT)
                status, answer = await gated
                await task
        said = next(entry for entry in logs if entry["event"] == "draining")
        assert (said["open_requests"], "second" in said["hint"]) == (1, True)
        assert (status, answer["error"]["code"]) == (503, "shutting_down")

    run(scenario())


def test_an_engine_that_does_not_end_is_killed_after_a_second_signal(run, monkeypatch):
    monkeypatch.setattr(agent, "FAREWELL_S", 0.01)

    async def scenario():
        at_once, killed = asyncio.Event(), asyncio.Event()

        async def stubborn():
            try:
                await asyncio.Event().wait()
            finally:
                killed.set()

        at_once.set()
        await agent._ended([asyncio.create_task(stubborn())], at_once)
        assert killed.is_set()

    run(scenario())


async def listening(url):
    host, port = url.removeprefix("http://").split(":")
    try:
        _, writer = await asyncio.open_connection(host, int(port))
    except OSError:
        return False
    writer.close()
    return True


def test_keys_are_asked_for(run, settings, serving, tmp_path):
    (tmp_path / "secrets" / "team").mkdir(parents=True)
    (tmp_path / "secrets" / "team" / "key").write_text("sesame\n")
    guarded = settings(
        extra=", auth: {apiKeysSecretRef: {name: team}}", secrets_dir=tmp_path / "secrets"
    )

    async def scenario():
        async with serving(guarded) as (client, _):
            await client.until_ready()
            assert (await client.complete("batch", [0]))[0] == 401
            client.session.headers["Authorization"] = "Bearer sesame"
            assert (await client.complete("batch", [0]))[0] == 200

    run(scenario())


def test_the_admin_port_has_health_and_metrics_but_no_api(run, settings, serving):
    async def scenario():
        async with serving(settings(admin_port=0)) as (client, _):
            await client.until_ready()
            client.url = f"http://127.0.0.1:{client.admin}"
            assert (await client.get("/readyz"))[0] == 200
            assert "omniserve_" in (await client.get("/metrics"))[1]
            assert (await client.get("/v1/models"))[0] == 404

    run(scenario())


def test_pages_of_a_named_origin_may_use_the_api(run, settings, serving):
    async def scenario():
        async with serving(settings(cors_origins=("http://page",))) as (client, _):
            await client.until_ready()
            headers = {"Origin": "http://page"}
            async with client.session.get(client.url + "/v1/models", headers=headers) as response:
                assert response.headers["Access-Control-Allow-Origin"] == "http://page"

    run(scenario())


def test_a_paused_service_starts_no_engine(run, settings, serving):
    paused = settings(extra=", state: Paused")
    text = paused.files[0].read_text().split("---")[1]
    paused.files[0].write_text(text)

    async def scenario():
        async with serving(paused) as (client, _):
            await client.until_ready()
            assert (await client.complete("batch", [0]))[0] == 503
            assert not children()

    run(scenario())


def children():
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return file.read().split()


def test_an_engine_that_cannot_start_ends_the_agent_with_its_reason(run, settings):
    with pytest.raises(EngineFailedError, match="engine0: the model has no weights; name another"):
        run(agent.serve(settings(), programs("fail")))


@pytest.mark.parametrize(
    ("extra", "fields", "message"),
    [
        (", slo: {ttftMs: 1, tpotMs: 1}", {}, "default/batch: spec.slo: forbidden for class BE"),
        (", auth: {apiKeysSecretRef: {name: k}}", {}, "no --secrets-dir was given"),
        ("", {"host_kv_bytes": 1 << 50}, "MiB wanted and .* MiB there"),
        ("", {"host": "192.0.2.1"}, "--port 0: .* on 192.0.2.1; choose another"),
    ],
)
def test_what_cannot_be_done_is_one_error(run, settings, extra, fields, message):
    with pytest.raises(NodeError, match=message):
        run(agent.serve(settings(extra, **fields), programs()))


def test_a_port_in_use_is_named(run, settings):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(NodeError, match=f"--port {port}: Address already in use on 127"):
            run(agent.serve(dataclasses.replace(settings(), port=port), programs()))
