"""A scripted engine, a tiny real tokenizer, and a server on 127.0.0.1."""

import asyncio
import inspect
import json
from collections.abc import Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
import openai
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from omniserve_agent.engine.messages import Ready, ServiceClass, Stats, TokenEvent
from omniserve_agent.http.app import make_app
from omniserve_agent.http.server import start
from omniserve_agent.http.tokenizer import ModelTokenizer
from omniserve_agent.serving import EngineUnavailableError, ServedService, Slo

TEST_TIMEOUT_S = 30
TEMPLATE = (
    "{% for m in messages %}"
    "{% if m.role == 'user' and m.content == 'forbidden' %}"
    "{{ raise_exception('the user says ' + m.content) }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CORPUS = ["Hello world, the capital of France is Paris.", "one two three STOP four", "Grüße 日本"]


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    """Runs coroutine tests, each in its own loop and with a limit."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    arguments = {name: pyfuncitem.funcargs[name] for name in names}

    async def limited():
        async with asyncio.timeout(TEST_TIMEOUT_S):
            await pyfuncitem.obj(**arguments)

    asyncio.run(limited())
    return True


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory):
    """Byte-level BPE trained on a few words, with a chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    root = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(str(root / "tokenizer.json"))
    config = {"eos_token": "<|im_end|>", "chat_template": TEMPLATE}
    (root / "tokenizer_config.json").write_text(json.dumps(config))
    return str(root)


@pytest.fixture(scope="session")
def tokenizer(tokenizer_dir):
    return ModelTokenizer(tokenizer_dir)


class FakeClock:
    """Seconds that pass only when told."""

    def __init__(self):
        self.now_s = 1000.0

    def __call__(self):
        return self.now_s

    def advance(self, seconds):
        self.now_s += seconds


@dataclass
class FakeEngine:
    """Plays `script(submit)`: token events, exceptions to raise, asyncio.Events to wait for, and
    callables to call."""

    script: Callable
    ready: Ready | None = field(
        default_factory=lambda: Ready(
            device="cpu",
            dtype="float32",
            max_request_tokens={ServiceClass.LS: 256, ServiceClass.BE: 512},
            device_kv_tokens=1024,
            host_kv_tokens=4096,
            isa="portable",
            load_seconds=0.1,
        )
    )
    progress: str = "loading weights"
    stats: Stats | None = None
    restarts: int = 0
    submits: list = field(default_factory=list)
    closed: list = field(default_factory=list)
    judgements: list = field(default_factory=list)
    asked: list = field(default_factory=list)
    reason: str | None = ""

    def judged(self, service, attained):
        self.judgements.append((service, attained))

    async def explain(self, request_ids):
        self.asked.append(list(request_ids))
        if self.reason is None:
            raise EngineUnavailableError("the engine died")
        return {} if self.reason == "ended" else dict.fromkeys(request_ids, self.reason)

    async def stream(self, submit):
        self.submits.append(submit)
        finished = False
        try:
            for step in self.script(submit):
                if isinstance(step, BaseException):
                    raise step
                if isinstance(step, asyncio.Event):
                    await step.wait()
                elif isinstance(step, TokenEvent):
                    finished = step.finish_reason is not None
                    yield step
                else:
                    step()
        finally:
            if not finished:
                self.closed.append(submit.request_id)


@pytest.fixture
def say(tokenizer):
    """A script that says a text token by token and then finishes."""

    def make(text, *, finish_reason="stop", cached_tokens=0, before=()):
        ids = tokenizer.encode(text)

        def script(submit):
            yield from before
            for position, token_id in enumerate(ids):
                yield TokenEvent(
                    request_id=submit.request_id,
                    token_ids=[token_id],
                    cached_tokens=cached_tokens if position == 0 else 0,
                )
            yield TokenEvent(request_id=submit.request_id, finish_reason=finish_reason)

        return script

    return make


@pytest.fixture
def service(tokenizer_dir):
    """ServedService with defaults; LS unless told otherwise."""

    def make(backend, **changes):
        is_ls = changes.get("service_class", ServiceClass.LS) is ServiceClass.LS
        values = {
            "namespace": "default",
            "name": "chat",
            "service_class": ServiceClass.LS,
            "backend": backend,
            "tokenizer_dir": tokenizer_dir,
            "slo": Slo(ttft_ms=500, tpot_ms=50) if is_ls else None,
        } | changes
        values.setdefault("served_name", values["name"])
        return ServedService(**values)

    return make


class Client:
    """Raw requests and the official client, against one server."""

    def __init__(self, server, app, session):
        self.server = server
        self.app = app
        self.session = session
        self.url = f"http://127.0.0.1:{server.port}"
        self.openai = openai.AsyncOpenAI(
            base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=TEST_TIMEOUT_S
        )

    async def get(self, path, **options):
        async with self.session.get(self.url + path, **options) as response:
            return response.status, await self._body(response), response.headers

    async def post(self, path, **options):
        async with self.session.post(self.url + path, **options) as response:
            return response.status, await self._body(response), response.headers

    async def complete(self, **fields):
        body = {"model": "chat", "prompt": "Hello"} | fields
        return await self.post("/v1/completions", json=body)

    async def _body(self, response):
        text = await response.text()
        return json.loads(text) if response.content_type == "application/json" else text


@pytest.fixture
def serving():
    """An async context manager: a client of a server over the services."""

    @asynccontextmanager
    async def serve(services, **options):
        app = make_app(services, **options)
        server = await start(app, "127.0.0.1", 0)
        async with aiohttp.ClientSession() as session:
            client = Client(server, app, session)
            try:
                yield client
            finally:
                await client.openai.close()
                await server.stop(grace_s=0)

    return serve


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def engine():
    return FakeEngine
