"""Supervised fake engines, and coroutines with a time limit."""

import asyncio
import contextlib
import importlib.util
import json
import sys
from pathlib import Path

import pytest
import zmq.asyncio
from tokenizers import Tokenizer, models, pre_tokenizers

from omniserve_agent.engine.messages import EngineConfig, ServiceClass, Submit
from omniserve_agent.node.backoff import RestartPolicy, Watchdog
from omniserve_agent.node.engine_client import EngineClient
from omniserve_agent.node.supervisor import Supervision, Supervisor

FAKE_ENGINE = Path(__file__).with_name("fake_engine.py")


class Clock:
    """Time that only a test moves, and a record of the waits asked for."""

    def __init__(self):
        self.now = 0.0
        self.slept = []

    def __call__(self):
        return self.now

    async def sleep(self, delay_s):
        self.slept.append(delay_s)


class Node:
    """One supervised fake engine."""

    def __init__(self, supervisor, clock, task):
        self.supervisor = supervisor
        self.client = supervisor.client
        self.clock = clock
        self.task = task

    async def until(self, condition):
        while not condition():
            await asyncio.sleep(0.01)

    async def ready(self):
        await self.until(lambda: self.client.ready is not None)

    async def tokens(self, submit):
        return [token async for event in self.client.stream(submit) for token in event.token_ids]


@pytest.fixture(scope="session")
def commands():
    """The fake engine's prompt commands, as a module."""
    spec = importlib.util.spec_from_file_location("fake_engine", FAKE_ENGINE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run():
    """Run a coroutine; no test waits for ever."""

    def run_limited(coroutine):
        async def limited():
            async with asyncio.timeout(60):
                return await coroutine

        return asyncio.run(limited())

    return run_limited


@pytest.fixture
def submit():
    """Make a Submit: BE unless told otherwise."""

    def make(request_id, prompt, max_tokens=5, service_class=ServiceClass.BE, **fields):
        return Submit(
            request_id=request_id,
            service=fields.pop("service", "team/batch"),
            service_class=service_class,
            prompt=prompt,
            max_tokens=max_tokens,
            **fields,
        )

    return make


@pytest.fixture
def started(tmp_path):
    """A context manager that starts a supervised fake engine."""

    @contextlib.asynccontextmanager
    async def start(mode="run", max_replays=3, max_waiting=8, max_failures=10):
        clock = Clock()
        context = zmq.asyncio.Context()
        supervisor = Supervisor(
            EngineClient("engine0", max_replays=max_replays, max_waiting=max_waiting),
            EngineConfig(model_dir="none"),
            context,
            tmp_path,
            command=(sys.executable, str(FAKE_ENGINE), "--mode", mode),
            supervision=Supervision(
                restart=RestartPolicy(max_failures=max_failures),
                watchdog=Watchdog(heartbeat_s=30, start_s=600),
                poll_s=0.02,
                stop_s=20.0,
                clock=clock,
                sleep=clock.sleep,
            ),
        )
        task = asyncio.create_task(supervisor.run())
        try:
            yield Node(supervisor, clock, task)
        finally:
            supervisor.stop()
            await task
            context.destroy(linger=0)

    return start


@pytest.fixture
def model_dir(tmp_path):
    """A tokenizer of numbers: word "w1000" is token 1000."""
    folder = tmp_path / "model"
    folder.mkdir()
    words = {f"w{number}": number for number in range(2000)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "w0"})
    )
    (folder / "config.json").write_text("{}")
    return folder
