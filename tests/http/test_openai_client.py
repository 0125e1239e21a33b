"""The official client against the server: what a user's program sees."""

import asyncio
import json

import openai
import pytest

from omniserve_agent.engine.messages import ServiceClass, TokenEvent, TokenLogprob
from omniserve_agent.http.settings import HttpSettings
from omniserve_agent.serving import EngineUnavailableError, RequestRefusedError, Slo

QUESTION = [{"role": "user", "content": "Hello"}]


async def test_models(engine, service, serving, say):
    backend = engine(say("x"))
    services = [
        service(backend),
        service(backend, name="batch", served_name="org/batch", service_class=ServiceClass.BE),
    ]
    async with serving(services) as client:
        listed = await client.openai.models.list()
        assert [m.id for m in listed.data] == ["chat", "org/batch"]
        found = await client.openai.models.retrieve("org/batch")
        assert (found.id, found.owned_by, found.max_model_len) == ("org/batch", "default", 512)
        with pytest.raises(openai.NotFoundError) as caught:
            await client.openai.models.retrieve("none")
        assert caught.value.code == "model_not_found"


async def test_chat(engine, service, serving, say, tokenizer):
    backend = engine(say("Paris.", cached_tokens=3))
    async with serving([service(backend)]) as client:
        answer = await client.openai.chat.completions.create(
            model="chat",
            messages=[
                {"role": "developer", "content": "Be brief."},
                {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
            ],
            max_completion_tokens=7,
            temperature=0,
            seed=42,
            user="someone",
        )
    choice = answer.choices[0]
    assert (choice.message.role, choice.message.content) == ("assistant", "Paris.")
    assert choice.finish_reason == "stop"
    submit = backend.submits[0]
    assert answer.usage.prompt_tokens == len(submit.prompt)
    assert answer.usage.completion_tokens == len(tokenizer.encode("Paris."))
    assert answer.usage.prompt_tokens_details.cached_tokens == 3
    assert tokenizer.encode(
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
        "<|im_start|>assistant\n"
    ) == list(submit.prompt)
    assert (submit.max_tokens, submit.sampling.temperature, submit.sampling.seed) == (7, 0, 42)
    assert (submit.service, submit.cache_salt) == ("default/chat", "default")
    assert (submit.ttft_slo_ms, submit.tpot_slo_ms) == (500, 50)
    assert (submit.objective_percent, submit.objective_window_s) == (99, 300)
    assert submit.stop_token_ids == [tokenizer.eos_id]


async def test_a_services_objective_goes_to_the_engine(engine, service, serving, say):
    strict = Slo(ttft_ms=500, tpot_ms=50, objective_percent=90, window_s=60)
    backend = engine(say("x"))
    async with serving([service(backend, slo=strict)]) as client:
        await client.openai.chat.completions.create(model="chat", messages=QUESTION)
    submit = backend.submits[0]
    assert (submit.objective_percent, submit.objective_window_s) == (90, 60)


async def test_streamed_chat_with_usage(engine, service, serving, say):
    async with serving([service(engine(say("Grüße 日本")))]) as client:
        stream = await client.openai.chat.completions.create(
            model="chat", messages=QUESTION, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    texts = [c.choices[0].delta.content or "" for c in chunks if c.choices]
    assert "".join(texts) == "Grüße 日本"
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(texts)
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens > 2
    assert all(chunk.usage is None for chunk in chunks[:-1])


async def test_completion_prompt_kinds(engine, service, serving, say, tokenizer):
    backend = engine(say(" world"))
    ids = tokenizer.encode("Hello")
    async with serving([service(backend)]) as client:
        for prompt, count in [("Hello", 1), (["Hello", "one"], 2), (ids, 1), ([ids, ids], 2)]:
            answer = await client.openai.completions.create(model="chat", prompt=prompt)
            assert [c.text for c in answer.choices] == [" world"] * count
            assert [c.index for c in answer.choices] == list(range(count))
    assert backend.submits[0].prompt == ids
    assert backend.submits[0].max_tokens == 256 - len(ids)


async def test_stop_string_over_tokens_is_never_emitted(engine, service, serving, say):
    backend = engine(say("one two three STOP four"))
    async with serving([service(backend)]) as client:
        answer = await client.openai.completions.create(
            model="chat", prompt="Hello", stop=["ee ST", "four"]
        )
        assert answer.choices[0].text == "one two thr"
        assert answer.choices[0].finish_reason == "stop"
        stream = await client.openai.completions.create(
            model="chat", prompt="Hello", stop="STOP", stream=True
        )
        pieces = [chunk.choices[0] async for chunk in stream]
        assert "".join(p.text for p in pieces) == "one two three "
        assert pieces[-1].finish_reason == "stop"
    assert len(backend.closed) == 2  # the engine was told that nobody wants the rest


async def test_n_choices_have_their_own_seeds(engine, service, serving, tokenizer):
    def script(submit):
        token_id = tokenizer.encode(str(submit.sampling.seed % 10))[0]
        yield TokenEvent(request_id=submit.request_id, token_ids=[token_id], finish_reason="length")

    backend = engine(script)
    async with serving([service(backend)]) as client:
        call = {"model": "chat", "messages": QUESTION, "n": 3, "max_tokens": 1}
        first = await client.openai.chat.completions.create(**call, seed=7)
        seeds = [submit.sampling.seed for submit in backend.submits]
        backend.submits.clear()
        again = await client.openai.chat.completions.create(**call, seed=7)
        assert [s.sampling.seed for s in backend.submits] == seeds
        backend.submits.clear()
        await client.openai.chat.completions.create(**call)
        assert [s.sampling.seed for s in backend.submits] != seeds
    assert seeds[0] == 7
    assert len(set(seeds)) == 3
    texts = [choice.message.content for choice in first.choices]
    assert texts == [str(seed % 10) for seed in seeds]
    assert [choice.message.content for choice in again.choices] == texts
    assert first.usage.completion_tokens == 3
    assert first.usage.prompt_tokens == len(backend.submits[0].prompt)


async def test_sampling_fields_arrive(engine, service, serving, say):
    backend = engine(say("x"))
    async with serving([service(backend)]) as client:
        await client.openai.completions.create(
            model="chat",
            prompt="Hello",
            temperature=0.5,
            top_p=0.9,
            presence_penalty=1,
            frequency_penalty=-1,
            logit_bias={"5": -100},
            max_tokens=4,
            extra_body={"top_k": 10, "min_p": 0.1, "repetition_penalty": 1.2, "ignore_eos": True},
        )
    submit = backend.submits[0]
    sampling = submit.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.9, 10)
    assert (sampling.min_p, sampling.repetition_penalty) == (0.1, 1.2)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (1, -1)
    assert sampling.logit_bias == {5: -100}
    assert (submit.max_tokens, submit.ignore_eos, submit.stop_token_ids) == (4, True, [])


def scored(tokenizer, text):
    def script(submit):
        for token_id in tokenizer.encode(text):
            yield TokenEvent(
                request_id=submit.request_id,
                token_ids=[token_id],
                logprobs=[TokenLogprob(token_id, -0.5)],
                top_logprobs=[[TokenLogprob(token_id, -0.5), TokenLogprob(40, float("-inf"))]],
            )
        yield TokenEvent(request_id=submit.request_id, finish_reason="stop")

    return script


async def test_chat_logprobs(engine, service, serving, tokenizer):
    backend = engine(scored(tokenizer, "日本"))
    async with serving([service(backend)]) as client:
        call = {"model": "chat", "messages": QUESTION, "logprobs": True, "top_logprobs": 2}
        answer = await client.openai.chat.completions.create(**call)
        stream = await client.openai.chat.completions.create(**call, stream=True)
        chunks = [c.choices[0] async for c in stream]
    content = answer.choices[0].logprobs.content
    assert backend.submits[0].sampling.logprobs == 2
    assert len(content) == len(tokenizer.encode("日本"))
    assert bytes(byte for token in content for byte in token.bytes).decode() == "日本"
    assert content[0].logprob == -0.5
    assert content[0].top_logprobs[1].logprob == -9999.0
    streamed = [token for c in chunks if c.logprobs for token in c.logprobs.content]
    assert [token.bytes for token in streamed] == [token.bytes for token in content]


async def test_completion_logprobs_end_before_the_stop_string(engine, service, serving, tokenizer):
    async with serving([service(engine(scored(tokenizer, "one two STOP")))]) as client:
        answer = await client.openai.completions.create(
            model="chat", prompt="Hello", logprobs=1, stop="STOP"
        )
    choice = answer.choices[0]
    assert choice.text == "one two "
    assert "".join(choice.logprobs.tokens).startswith("one two")
    assert "S" not in "".join(choice.logprobs.tokens).replace(" S", " ")
    assert choice.logprobs.text_offset[0] == 0
    assert max(choice.logprobs.text_offset) < len(choice.text)
    assert choice.logprobs.top_logprobs[0][choice.logprobs.tokens[0]] == -0.5


async def test_two_services_at_once(engine, service, serving, say):
    gate = asyncio.Event()
    backend = engine(
        lambda submit: (
            say("slow", before=[gate])(submit)
            if submit.service_class is ServiceClass.BE
            else say("fast")(submit)
        )
    )
    services = [service(backend), service(backend, name="batch", service_class=ServiceClass.BE)]
    async with serving(services) as client:
        complete = client.openai.completions.create
        slow = asyncio.create_task(complete(model="batch", prompt="Hello"))
        fast = await complete(model="chat", prompt="Hello")
        assert fast.choices[0].text == "fast"
        assert not slow.done()
        gate.set()
        assert (await slow).choices[0].text == "slow"
    assert {s.service: s.ttft_slo_ms for s in backend.submits} == {
        "default/chat": 500,
        "default/batch": None,
    }


@pytest.mark.parametrize(
    ("failure", "kind", "status"),
    [
        (RequestRefusedError("queue_full", "full", 2.2), openai.RateLimitError, 429),
        (RequestRefusedError("too_long", "too long"), openai.BadRequestError, 400),
        (RequestRefusedError("bad_request", "bad"), openai.BadRequestError, 400),
        (EngineUnavailableError("the engine died"), openai.InternalServerError, 503),
        (ValueError("a bug"), openai.InternalServerError, 500),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_failures_before_the_first_token(
    engine, service, serving, failure, kind, status, stream
):
    async with serving([service(engine(lambda _: [failure]))]) as client:
        with pytest.raises(kind) as caught:
            await client.openai.completions.create(model="chat", prompt="Hello", stream=stream)
    assert caught.value.status_code == status
    if status == 429:
        assert caught.value.response.headers["Retry-After"] == "3"
    if status == 503:
        assert int(caught.value.response.headers["Retry-After"]) >= 1
    assert "a bug" not in str(caught.value)


async def test_failure_mid_stream_is_an_error_event(engine, service, serving, tokenizer):
    def script(submit):
        yield TokenEvent(request_id=submit.request_id, token_ids=tokenizer.encode("Hello"))
        yield EngineUnavailableError("the engine died")

    async with serving([service(engine(script))]) as client:
        stream = await client.openai.completions.create(model="chat", prompt="x", stream=True)
        assert (await anext(stream)).choices[0].text == "Hello"
        with pytest.raises(openai.APIError, match="the engine died"):
            await anext(stream)
        _, raw, _ = await client.post(
            "/v1/completions", json={"model": "chat", "prompt": "x", "stream": True}
        )
    assert '"code":"engine_unavailable"' in raw
    assert "[DONE]" not in raw


async def test_keep_alive_comments_while_waiting(engine, service, serving, say):
    gate = asyncio.Event()
    settings = HttpSettings(keep_alive_comment_s=0.001)
    async with serving([service(engine(say("Hello", before=[gate])))], settings=settings) as client:
        body = {"model": "chat", "prompt": "x", "stream": True}
        async with client.session.post(f"{client.url}/v1/completions", json=body) as response:
            assert await response.content.readline() == b": keep-alive\n"
            gate.set()
            rest = (await response.content.read()).decode()
    assert rest.rstrip().endswith("data: [DONE]")
    events = [json.loads(line[6:]) for line in rest.splitlines() if line.startswith("data: {")]
    assert "".join(event["choices"][0]["text"] for event in events) == "Hello"
