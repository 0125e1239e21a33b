"""One line per request in the log, and an id that its caller can name."""

import asyncio

import aiohttp
import pytest
from structlog.testing import capture_logs

from omniserve_agent.engine.messages import ServiceClass, TokenEvent
from omniserve_agent.serving import EngineUnavailableError, RequestRefusedError


@pytest.fixture
def logs():
    with capture_logs() as entries:
        yield entries


def lines(logs):
    return [entry for entry in logs if entry["event"] == "request"]


async def until(condition):
    while not condition():
        await asyncio.sleep(0.005)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_finished_request_says_what_it_took(
    engine, service, serving, say, clock, logs, tokenizer, stream
):
    script = say("one two", before=[lambda: clock.advance(0.25)])
    batch = service(engine(script), name="batch", served_name="b", service_class=ServiceClass.BE)
    async with serving([batch], clock=clock) as client:
        status, _, headers = await client.complete(
            model="b", prompt="Grüße", stream=stream, n=2, user="sesame"
        )
        await until(lambda: lines(logs))
    assert status == 200
    (line,) = lines(logs)
    assert line == {
        "event": "request",
        "log_level": "info",
        "method": "POST",
        "path": "/v1/completions",
        "status": 200,
        "model": "b",
        "service": "default/batch",
        "class": "BE",
        "prompt_tokens": len(tokenizer.encode("Grüße")),
        "output_tokens": 2 * len(tokenizer.encode("one two")),
        "ttft_ms": line["ttft_ms"],
        "total_ms": 500.0,  # both choices move the clock
        "request_id": headers["X-Request-Id"],
    }
    assert line["ttft_ms"] in (250.0, 500.0)


@pytest.mark.parametrize(
    ("script", "fields", "status", "code"),
    [
        (None, {"model": "none"}, 404, "model_not_found"),
        (None, {"temperature": 9}, 400, "invalid_value"),
        (None, {"prompt": [1] * 300}, 400, "context_length_exceeded"),
        ([RequestRefusedError("queue_full", "full")], {}, 429, "queue_full"),
        ([EngineUnavailableError("dead")], {}, 503, "engine_unavailable"),
        ([ValueError("a bug")], {}, 500, "server_error"),
    ],
)
async def test_a_refused_request_says_why(
    engine, service, serving, logs, script, fields, status, code
):
    async with serving([service(engine(lambda _: script))]) as client:
        assert (await client.complete(**fields))[0] == status
    (line,) = lines(logs)
    model = fields.get("model", "chat")
    assert (line["status"], line["error"]) == (status, code)
    assert line.get("model") == (None if status == 400 and "temperature" in fields else model)


async def test_a_stream_that_breaks_and_a_client_that_leaves(
    engine, service, serving, logs, tokenizer
):
    gate = asyncio.Event()

    def script(submit):
        yield TokenEvent(request_id=submit.request_id, token_ids=tokenizer.encode("Hello"))
        if submit.sampling.seed == 1:
            yield EngineUnavailableError("the engine died")
        yield gate

    async with serving([service(engine(script))]) as client:
        await client.complete(stream=True, seed=1)
        assert [(line["status"], line["error"]) for line in lines(logs)] == [
            (200, "engine_unavailable")
        ]
        body = {"model": "chat", "prompt": "x", "stream": True, "seed": 2}
        async with aiohttp.ClientSession() as session:
            answer = await session.post(f"{client.url}/v1/completions", json=body)
            await answer.content.readline()
        await until(lambda: len(lines(logs)) == 2)
    left = lines(logs)[1]
    assert left["error"] == "client_closed_request"
    assert left["output_tokens"] == len(tokenizer.encode("Hello"))


async def test_no_prompt_no_text_and_no_key_is_logged(engine, service, serving, say, logs):
    guarded = service(engine(say("Paris")), api_keys=frozenset({"sesame"}))
    async with serving([guarded]) as client:
        for key in ("sesame", "tomato"):
            headers = {"Authorization": f"Bearer {key}"}
            body = {"model": "chat", "prompt": "capital of France", "stop": "STOP"}
            await client.post("/v1/completions?key=sesame", json=body, headers=headers)
    assert [line["status"] for line in lines(logs)] == [200, 401]
    for secret in ("sesame", "tomato", "France", "Paris", "STOP"):
        assert secret not in str(logs)


async def test_probes_are_not_logged_but_wrong_paths_are(engine, service, serving, say, logs):
    async with serving([service(engine(say("x")))]) as client:
        for path in ("/health", "/healthz", "/readyz", "/readyz/default/chat", "/metrics"):
            assert (await client.get(path))[0] == 200
        assert lines(logs) == []
        await client.get("/v1/models")
        await client.post("/chat/completions", json={})
    assert [(line["path"], line["status"]) for line in lines(logs)] == [
        ("/v1/models", 200),
        ("/chat/completions", 404),
    ]


@pytest.mark.parametrize(
    ("given", "kept"),
    [("trace-1/a.b:c=", True), ("", False), ("a b", False), ("ü", False), ("x" * 129, False)],
)
async def test_a_caller_may_name_its_request(engine, service, serving, say, logs, given, kept):
    async with serving([service(engine(say("x")))]) as client:
        found = []
        for stream in (False, True):
            _, _, headers = await client.post(
                "/v1/completions",
                json={"model": "chat", "prompt": "x", "stream": stream},
                headers={"x-request-id": given},
            )
            found.append(headers["X-Request-Id"])
        answer = await client.openai.chat.completions.create(
            model="chat", messages=[{"role": "user", "content": "x"}]
        )
    assert [name == given for name in found] == [kept, kept]
    assert all(1 <= len(name) <= 128 for name in found)
    assert len(answer._request_id) == 32
    assert [line["request_id"] for line in lines(logs)] == [*found, answer._request_id]
