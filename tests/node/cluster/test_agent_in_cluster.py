"""The whole agent against an API server, with a fake engine: what users and operators see."""

import asyncio
import contextlib
import itertools
import os
import signal
import socket
import ssl
import sys
from pathlib import Path
from types import SimpleNamespace

import aiohttp
import pytest

from omniserve_agent.node.agent import Programs
from omniserve_agent.node.backoff import RestartPolicy
from omniserve_agent.node.cluster import agent as cluster_agent
from omniserve_agent.node.cluster.agent import ClusterAgent, Patience, serve_node
from omniserve_agent.node.cluster.kubernetes_api import connected
from omniserve_agent.node.cluster.model_cache import ModelCache
from omniserve_agent.node.cluster.settings import NodeSettings
from omniserve_agent.node.cluster.watch import WatchPolicy
from omniserve_agent.node.errors import NodeError
from omniserve_agent.node.supervisor import Supervision
from omniserve_agent.settings import Settings
from support.certificates import write_pair
from support.fake_api_server import FakeApiServer

HERE = Path(__file__).parent.parent
LS, BE = 20001, 20002
hosts = itertools.count(2)


class Cluster:
    """An API server, an agent, and HTTP to both."""

    def __init__(self, api, session, settings, task, uri, agents, restarts):
        self.api, self.session, self.settings, self.task = api, session, settings, task
        self.uri, self.agents = uri, agents
        self.restarts = restarts  # cleared: no engine is started again
        self.host = settings.engine.host

    def spec(self, key="a", kv=1 << 26, ls=None, be=None, **fields):
        """Both services on the CPU's engine, with changes."""
        engine = {
            "device": "cpu",
            "key": key,
            "uri": self.uri,
            "hostCores": 1,
            "hostKvBytes": kv,
        }
        chat = {
            "uid": "u-chat",
            "generation": 1,
            "namespace": "team-a",
            "name": "chat",
            "servedName": "chat",
            "class": "LS",
            "slo": {"ttftMs": 5000, "tpotMs": 1000, "window": "10s"},
            "device": "cpu",
            "port": LS,
        }
        batch = {
            "uid": "u-batch",
            "generation": 1,
            "namespace": "team-b",
            "name": "batch",
            "servedName": "batch",
            "class": "BE",
            "device": "cpu",
            "port": BE,
        }
        services = [{**chat, **(ls or {})}, {**batch, **(be or {})}]
        services = [{k: v for k, v in s.items() if v is not None} for s in services]
        return {"engines": [engine], "assignments": services, **fields}

    async def complete(self, port, model, prompt=(0,), key=None, max_tokens=3):
        body = {"model": model, "prompt": list(prompt), "max_tokens": max_tokens}
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        url = f"http://{self.host}:{port}/v1/completions"
        async with self.session.post(url, json=body, headers=headers) as response:
            return response.status, await response.json()

    async def status(self, port, model, **fields):
        return (await self.complete(port, model, **fields))[0]

    async def admin(self, path):
        url = f"http://{self.host}:{self.settings.admin_port}{path}"
        async with self.session.get(url) as response:
            return response.status, await response.text()

    async def until(self, condition):
        while not condition():
            if self.task.done():
                await self.task
                raise AssertionError("the agent has ended")
            await asyncio.sleep(0.02)

    async def until_state(self, uid, state, reason=None):
        def reached():
            report = self.api.service(uid)
            return report.get("state") == state and reason in (None, report.get("reason"))

        await self.until(reached)
        return self.api.service(uid)

    async def both_ready(self):
        await self.until_state("u-chat", "Ready")
        await self.until_state("u-batch", "Ready")

    async def listens(self, port):
        """Whether somebody does."""
        try:
            _, writer = await asyncio.open_connection(self.host, port)
        except OSError:
            return False
        writer.close()
        return True

    async def until_listening(self, port, wanted=True):
        while await self.listens(port) is not wanted:
            await asyncio.sleep(0.02)

    async def gated(self, commands, port=BE, model="batch"):
        """A request that is in the engine and ends when `open_gate` is called."""
        before = self.backend.active
        request = asyncio.create_task(self.complete(port, model, prompt=[commands.GATE]))
        await self.until(lambda: self.backend.active > before)
        return request

    async def open_gate(self, submit, commands):
        """Past the ports, which may be draining."""
        async for _ in self.backend.stream(submit("opener", [commands.OPEN])):
            pass

    @property
    def agent(self):
        return self.agents[0]

    @property
    def backend(self):
        return self.agent.executor.units[0].client


def children():
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return file.read().split()


@pytest.fixture
def cluster(tmp_path, model_dir, monkeypatch):
    """A context manager: a running agent with an empty ServingNode."""

    @contextlib.asynccontextmanager
    async def start(mode="run", created=True, drain_grace_s=20.0, **node):
        api, restarts = FakeApiServer(), asyncio.Event()
        restarts.set()
        await api.up()

        async def sleep(delay_s):
            await restarts.wait()
            await asyncio.sleep(delay_s)

        config = tmp_path / "kubeconfig"
        config.write_text(api.kubeconfig)
        monkeypatch.setenv("KUBECONFIG", str(config))
        if created:
            api.create()
        settings = NodeSettings(
            node_name="n1",
            namespace="release",
            admin_port=18081,
            engine=Settings(
                files=(),
                host=f"127.66.{os.getpid() % 250 + 1}.{next(hosts)}",
                device="cpu",
                cache_dir=tmp_path / "cache",
                host_kv_bytes=256 << 20,
                drain_grace_s=drain_grace_s,
            ),
            **node,
        )
        programs = Programs(
            engine=(sys.executable, str(HERE / "fake_engine.py"), "--mode", mode),
            prepare=(sys.executable, str(HERE / "fake_prepare.py")),
        )
        patience = Patience(
            watch=WatchPolicy(first_retry_s=0.05, longest_retry_s=0.2, missing_poll_s=0.05),
            supervision=Supervision(
                restart=RestartPolicy(first_s=0.05, max_failures=2), poll_s=0.02, sleep=sleep
            ),
            rests=RestartPolicy(first_s=0.2, longest_s=0.5, max_failures=1000),
        )

        agents = []

        def noting(*parts):
            agents.append(ClusterAgent(*parts))
            return agents[0]

        monkeypatch.setattr(cluster_agent, "ClusterAgent", noting)

        async def agent():
            async with connected("n1", "release") as kubernetes:
                await serve_node(settings, kubernetes, programs, patience)

        task = asyncio.create_task(agent())
        async with aiohttp.ClientSession() as session:
            uri = f"file:///dir{model_dir}"
            there = Cluster(api, session, settings, task, uri, agents, restarts)
            try:
                yield there
            finally:
                if not task.done():
                    os.kill(os.getpid(), signal.SIGTERM)
                await asyncio.wait({task})
                await api.down()
        if not task.cancelled() and task.exception() is not None:
            raise task.exception()

    return start


def test_two_services_of_one_engine_answer_on_their_own_ports(run, cluster):
    async def scenario():
        async with cluster(template="hash-1") as there:
            await there.until(lambda: there.api.status.get("devices"))
            assert there.api.status["services"] == []
            there.api.set_spec(there.spec())
            await there.both_ready()
            assert await there.status(LS, "chat") == 200
            assert await there.status(BE, "batch") == 200
            assert await there.status(LS, "batch") == 404
            assert await there.status(BE, "chat") == 404
            assert len(children()) == 1
            status = there.api.status
            assert status["agentTemplate"] == "hash-1"
            assert status["address"] == there.host
            assert status["observedGeneration"] == 2
            assert [engine["key"] for engine in status["engines"]] == ["a"]
            assert (status["engineSummary"], status["readySummary"]) == ("1/1", "2/2")

    run(scenario())
    assert children() == []


def test_with_a_certificate_services_speak_https_and_nothing_else(run, cluster, tmp_path):
    directory = write_pair(tmp_path / "tls")

    async def scenario():
        async with cluster(tls_dir=directory) as there:
            there.api.set_spec(there.spec())
            await there.both_ready()
            url = f"https://{there.host}:{LS}/v1/models"
            trusted = ssl.create_default_context(cafile=directory / "tls.crt")
            trusted.check_hostname = False  # the address is another one with every test
            async with there.session.get(url, ssl=trusted) as response:
                assert response.status == 200
            with pytest.raises(aiohttp.ClientError):
                await there.status(LS, "chat")
            assert (await there.admin("/readyz/team-a/chat"))[0] == 200

    run(scenario())


def test_figures_come_with_the_next_report(run, cluster, commands, submit):
    async def scenario():
        async with cluster() as there:
            there.api.set_spec(there.spec())
            await there.both_ready()
            assert there.api.service("u-chat")["ls"]["offered"] == 0
            for _ in range(2):
                assert await there.status(LS, "chat") == 200
            assert await there.status(LS, "chat", prompt=[commands.FULL]) == 429
            assert await there.status(BE, "batch") == 200
            gated = await there.gated(commands)
            there.api.set_spec(there.spec(ls={"generation": 2}))
            await there.until(lambda: there.api.service("u-chat")["observedGeneration"] == 2)
            window = there.api.service("u-chat")["ls"]
            assert (window["offered"], window["attained"], window["refused"]) == (3, 2, 1)
            assert window["ttftMsP50"] <= window["ttftMsP99"] <= 5000
            best_effort = there.api.service("u-batch")["be"]
            assert best_effort["tokensPerMinute"] > 0
            assert (best_effort["queued"], best_effort["running"]) == (1, 0)
            assert best_effort["predictedFinish"].endswith("Z")
            await there.open_gate(submit, commands)
            assert (await gated)[0] == 200

    run(scenario())


def test_states_are_told_on_the_way(run, cluster):
    async def scenario():
        async with cluster() as there:
            there.api.set_spec(there.spec())
            await there.both_ready()
            told = [
                service["reason"]
                for patch in there.api.patches
                for service in patch["services"]
                if service["uid"] == "u-chat"
            ]
            assert told[-1] == "Serving"
            assert set(told) <= {
                "WaitingForResources",
                "Preparing",
                "Starting",
                "Probing",
                "Serving",
            }
            assert len(told) > 1

    run(scenario())


def test_readiness_of_the_node_and_of_a_service(run, cluster):
    async def scenario():
        async with cluster(created=False) as there:
            while True:
                with contextlib.suppress(aiohttp.ClientConnectionError):
                    status, text = await there.admin("/readyz")
                    break
                await asyncio.sleep(0.02)
            assert status == 503
            assert "ServingNode has not been seen yet" in text
            assert (await there.admin("/healthz"))[0] == 200
            there.api.create(there.spec())
            await there.both_ready()
            assert (await there.admin("/readyz"))[0] == 200
            assert (await there.admin("/readyz/team-a/chat"))[0] == 200
            assert (await there.admin("/readyz/team-a/other"))[0] == 404
            assert "omniserve_engine_ready" in (await there.admin("/metrics"))[1]
            assert (await there.admin("/v1/models"))[0] == 404
            there.api.set_spec(there.spec(drain=True))
            await there.until_state("u-chat", "Draining", "Drained")
            status, text = await there.admin("/readyz")
            assert (status, "spec.drain is set" in text) == (503, True)
            status, text = await there.admin("/readyz/team-a/chat")
            assert (status, "Draining" in text) == (503, True)

    run(scenario())


def test_a_class_a_port_and_keys_change_without_a_restart(run, cluster):
    async def scenario():
        async with cluster() as there:
            there.api.secrets["svc-u-batch"] = {"k": "sesame"}
            there.api.set_spec(there.spec())
            await there.both_ready()
            engine = children()
            changed = there.spec(
                ls={"class": "BE", "slo": None, "generation": 2},
                be={"port": 20003, "apiKeysSecret": "svc-u-batch", "servedName": "bulk"},
            )
            there.api.set_spec(changed)
            await there.until(lambda: there.api.service("u-chat").get("observedGeneration") == 2)
            assert await there.status(LS, "chat") == 200
            assert "be" in there.api.service("u-chat")
            await there.until_listening(20003)
            while await there.status(20003, "bulk", key="sesame") != 200:
                await asyncio.sleep(0.02)
            assert await there.status(20003, "bulk") == 401
            assert await there.status(20003, "bulk", key="other") == 401
            assert await there.status(20003, "batch", key="sesame") == 404
            await there.until_listening(BE, False)
            assert children() == engine

    run(scenario())


def test_without_its_keys_a_service_is_shut_and_not_ready(run, cluster):
    async def scenario():
        async with cluster() as there:
            there.api.set_spec(there.spec(ls={"apiKeysSecret": "svc-u-chat"}))
            report = await there.until_state("u-chat", "Pending", "KeysMissing")
            assert report["message"] == "Secret svc-u-chat is not there; the operator mirrors it"
            await there.until_state("u-batch", "Ready")
            assert await there.status(LS, "chat", key="anything") == 401
            there.api.secrets["svc-u-chat"] = {"a": "one", "b": "two"}
            there.api.set_spec(there.spec(ls={"apiKeysSecret": "svc-u-chat", "priority": 1}))
            await there.until_state("u-chat", "Ready")
            assert await there.status(LS, "chat", key="two") == 200

    run(scenario())


def test_another_model_drains_what_runs_and_starts_anew(run, cluster, commands, submit):
    async def scenario():
        async with cluster() as there:
            there.api.set_spec(there.spec())
            await there.both_ready()
            engine = children()
            gated = await there.gated(commands)
            there.api.set_spec(there.spec(key="b"))
            report = await there.until_state("u-batch", "Draining", "Draining")
            assert report["message"] == "1 requests are running"
            assert not gated.done()
            assert children() == engine
            await there.open_gate(submit, commands)
            assert (await gated)[0] == 200
            await there.until(lambda: [e["key"] for e in there.api.status["engines"]] == ["b"])
            await there.both_ready()
            assert children() != engine

    run(scenario())


def test_a_drained_service_finishes_what_runs_and_takes_nothing_new(run, cluster, commands, submit):
    async def scenario():
        async with cluster() as there:
            there.api.set_spec(there.spec())
            await there.both_ready()
            gated = await there.gated(commands)
            there.api.set_spec(there.spec(be={"drain": True}))
            await there.until_state("u-batch", "Draining", "Draining")
            status, body = await there.complete(BE, "batch")
            assert (status, body["error"]["code"]) == (503, "shutting_down")
            assert await there.status(LS, "chat") == 200
            await there.open_gate(submit, commands)
            assert (await gated)[0] == 200
            await there.until_state("u-batch", "Draining", "Drained")
            there.api.set_spec(there.spec())
            await there.until_state("u-batch", "Ready")
            assert await there.status(BE, "batch") == 200

    run(scenario())


def test_a_drain_ends_at_its_grace(run, cluster, commands):
    async def scenario():
        async with cluster(drain_grace_s=0.2) as there:
            there.api.set_spec(there.spec())
            await there.both_ready()
            gated = await there.gated(commands)
            there.api.set_spec({"engines": [], "assignments": []})
            status, body = await gated
            assert (status, body["error"]["code"]) == (503, "shutting_down")
            await there.until(lambda: there.api.status["engines"] == [])
            assert there.api.status["services"] == []

    run(scenario())
    assert children() == []


def test_traffic_goes_on_while_the_api_server_is_away(run, cluster):
    async def scenario():
        async with cluster() as there:
            there.api.secrets["svc"] = {"k": "sesame"}
            wanted = there.spec(be={"apiKeysSecret": "svc"})
            there.api.set_spec(wanted)
            await there.both_ready()
            engine = children()
            await there.api.down()
            await there.until(lambda: not there.agent.watch.connected)
            assert await there.status(LS, "chat") == 200
            assert await there.status(BE, "batch", key="sesame") == 200
            assert (await there.admin("/readyz"))[0] == 200
            there.api.set_spec(there.spec(ls={"generation": 7}, be={"apiKeysSecret": "svc"}))
            await there.api.up()
            await there.until(lambda: there.api.service("u-chat").get("observedGeneration") == 7)
            assert children() == engine

    run(scenario())


def test_watches_that_are_forgotten_and_writes_that_fail_are_made_good(run, cluster):
    async def scenario():
        async with cluster() as there:
            there.api.forgetful, there.api.refuse_patches = 3, 1
            await there.api.down()
            await there.api.up()
            there.api.set_spec(there.spec())
            await there.both_ready()
            assert there.api.refuse_patches == 0
            await there.until(lambda: there.api.forgetful == 0)

    run(scenario())


def test_an_object_made_anew_gets_its_status(run, cluster):
    async def scenario():
        async with cluster() as there:
            there.api.set_spec(there.spec())
            await there.both_ready()
            engine = children()
            there.api.delete()
            there.api.create(there.spec())
            await there.both_ready()
            assert children() == engine
            assert there.api.status["observedGeneration"] == 1

    run(scenario())


def test_a_spec_that_is_not_understood_leaves_the_last_one_in_force(run, cluster):
    async def scenario():
        async with cluster() as there:
            there.api.set_spec(there.spec())
            await there.both_ready()
            there.api.set_spec(there.spec(ls={"port": 0}))
            await there.until(lambda: there.api.status["conditions"])
            (condition,) = there.api.status["conditions"]
            assert condition["reason"] == "NotUnderstood"
            assert "generation 3: " in condition["message"]
            assert "port" in condition["message"]
            assert there.api.status["observedGeneration"] == 2
            assert await there.status(LS, "chat") == 200
            there.api.set_spec(there.spec())
            await there.until(lambda: there.api.status["observedGeneration"] == 4)
            assert there.api.status["conditions"] == []

    run(scenario())


def test_fields_of_a_newer_operator_are_ignored(run, cluster):
    async def scenario():
        async with cluster() as there:
            newer = there.spec(ls={"slo": {"ttftMs": 9, "tpotMs": 9, "later": 1}, "colour": "blue"})
            there.api.set_spec({**newer, "season": "winter"})
            await there.both_ready()

    run(scenario())


def test_an_engine_that_dies_takes_readiness_with_it_for_a_while(run, cluster, commands):
    async def scenario():
        async with cluster() as there:
            there.api.set_spec(there.spec())
            await there.both_ready()
            there.restarts.clear()
            crash = there.complete(BE, "batch", prompt=[commands.CRASH, 1])
            request = asyncio.create_task(crash)
            report = await there.until_state("u-chat", "Loading", "EngineRestarting")
            assert report["message"] == "the engine exited with code 9"
            assert await there.status(LS, "chat") == 503
            there.restarts.set()
            assert (await request)[0] == 200  # replayed on the next engine
            await there.both_ready()

    run(scenario())


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("fail", "the model has no weights; name another"),
        ("trip", "died of KeyError: 0; two starts in a row failed so"),
    ],
)
def test_an_engine_that_cannot_start_is_named_and_tried_again(run, cluster, mode, message):
    async def scenario():
        async with cluster(mode=mode) as there:
            there.api.set_spec(there.spec())
            report = await there.until_state("u-chat", "Failed", "EngineFailed")
            assert report["message"] == message
            await there.until_state("u-chat", "Loading")
            await there.until_state("u-chat", "Failed", "EngineFailed")

    run(scenario())


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("file:///refuse", "no such file; name one that exists"),
        ("file:///crash", "BoomError: out of luck"),
    ],
)
def test_a_model_that_cannot_be_had_is_named(run, cluster, uri, message):
    async def scenario():
        async with cluster() as there:
            there.uri = uri
            there.api.set_spec(there.spec())
            report = await there.until_state("u-chat", "Failed", "LoadFailed")
            assert message in report["message"]

    run(scenario())


def test_a_disk_that_is_full_is_a_reason_and_is_tried_again_after_a_rest(run, cluster, monkeypatch):
    acquire, tries = ModelCache.acquire, []

    async def full_twice(self, *given):
        tries.append(given)
        if len(tries) <= 2:
            raise OSError(28, "No space left on device")
        return await acquire(self, *given)

    monkeypatch.setattr(ModelCache, "acquire", full_twice)

    async def scenario():
        async with cluster() as there:
            there.api.set_spec(there.spec())
            report = await there.until_state("u-chat", "Failed", "LoadFailed")
            assert report["message"] == "OSError: [Errno 28] No space left on device"
            unit = there.agent.executor.units[0]
            await there.both_ready()
            assert there.agent.executor.units == [unit]
            assert len(tries) == 3

    run(scenario())


def test_what_does_not_fit_the_memory_is_refused_with_figures(run, cluster):
    async def scenario():
        async with cluster() as there:
            wanted = there.spec()
            wanted["engines"][0]["weightsBytes"] = 1 << 50
            there.api.set_spec(wanted)
            report = await there.until_state("u-chat", "Failed", "LoadFailed")
            assert "engine on cpu model 1073741824 MiB" in report["message"]

    run(scenario())


def test_more_than_the_node_has_is_refused(run, cluster):
    async def scenario():
        async with cluster() as there:
            there.api.set_spec(there.spec(kv=1 << 40))
            report = await there.until_state("u-chat", "Failed", "Refused")
            assert report["message"].startswith(
                "hostKvBytes is 1099511627776; 1048576 to 268435456"
            )

    run(scenario())


def test_a_port_in_use_is_named_and_opened_once_it_is_free(run, cluster):
    async def scenario():
        async with cluster() as there:
            with socket.create_server((there.host, LS)):
                there.api.set_spec(there.spec())
                report = await there.until_state("u-chat", "Failed", "PortUnavailable")
                assert f"port {LS} on {there.host}: " in report["message"]
            await there.until_state("u-chat", "Ready")

    run(scenario())


def test_sigterm_lets_requests_finish_and_reports_the_drain(run, cluster, commands, submit):
    async def scenario():
        async with cluster() as there:
            there.api.set_spec(there.spec())
            await there.both_ready()
            gated = await there.gated(commands)
            os.kill(os.getpid(), signal.SIGTERM)
            await there.until_state("u-batch", "Draining", "Draining")
            await there.until_state("u-chat", "Draining", "Drained")
            assert (await there.admin("/readyz"))[0] == 503
            await there.until_listening(BE, False)
            await there.open_gate(submit, commands)
            assert (await gated)[0] == 200
            await there.task
            assert there.api.service("u-batch")["reason"] == "Drained"

    run(scenario())
    assert children() == []


def test_an_admin_port_that_is_taken_ends_the_agent(run, tmp_path):
    engine = Settings(files=(), host="127.66.0.1", device="cpu", cache_dir=tmp_path)
    settings = NodeSettings(node_name="n1", namespace="release", admin_port=18081, engine=engine)
    with (
        socket.create_server(("127.66.0.1", 18081)),
        pytest.raises(NodeError, match=r"--admin-port 18081: .* on 127\.66\.0\.1; choose another"),
    ):
        run(serve_node(settings, SimpleNamespace(read_secret=None)))


def test_a_part_that_fails_ends_the_agent_in_good_order(run, cluster, monkeypatch):
    async def scenario():
        async with cluster() as there:
            there.api.set_spec(there.spec())
            await there.both_ready()

            def fail():
                raise ValueError("a bug")

            monkeypatch.setattr(there.agent.reporter, "_sample", fail)
            await asyncio.wait({there.task})

    with pytest.raises(ValueError, match="a bug"):
        run(scenario())
    assert children() == []


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("emulated:h200-16core", "for experiments with `serve`; use auto, cpu or cuda"),
        ("cuda:3", "no such CUDA device was found"),
    ],
)
def test_a_device_that_a_node_cannot_have_ends_the_agent(run, tmp_path, device, message):
    engine = Settings(files=(), host="127.66.0.2", device=device, cache_dir=tmp_path)
    settings = NodeSettings(node_name="n1", namespace="release", engine=engine)
    with pytest.raises(NodeError, match=message):
        run(serve_node(settings, SimpleNamespace(read_secret=None)))


def test_an_agent_outside_any_cluster_says_so(run, monkeypatch):
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)

    async def scenario():
        async with connected("n1", "release"):
            pass

    with pytest.raises(NodeError, match="set KUBECONFIG or run in a pod"):
        run(scenario())
