"""Both classes of service on one engine through the official client, on the real model."""

import openai
import pytest

pytestmark = pytest.mark.real_model

FRANCE = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
LAYERS = 30
STORY = "Once upon a time, in a village by the sea,"


@pytest.fixture(scope="module")
def agent(running_agent, write_manifest, documents):
    """`chat` and `strict` (LS, the second with an SLO nobody attains) and `batch` (BE), one engine.
    BE requests live on the host, so that its cores run their attention."""
    strict = documents["make"]("strict", "LS", ttftMs=1, tpotMs=1)
    file = write_manifest(documents["chat"], strict, documents["batch"])
    with running_agent(file, "--no-be-residency") as agent:
        yield agent


def streamed(stream):
    """All chunks of a stream: text, finish reason, usage."""
    text, reason, usage = "", None, None
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            reason = choice.finish_reason or reason
    return text, reason, usage


def france(agent, model, **fields):
    return agent.openai.chat.completions.create(
        model=model, messages=FRANCE, temperature=0, max_tokens=32, **fields
    )


def test_models(agent):
    models = agent.openai.models.list().data
    assert [model.id for model in models] == ["chat", "strict", "batch"]
    assert {model.max_model_len for model in models} == {2048}


def test_a_chat_streams_while_batch_runs_on_the_host_cores(agent, together):
    rows = agent.stats().get("host_attention_rows", {}).get("BE", 0)
    joins = agent.stats().get("joins", 0)
    batch = [
        together.submit(agent.complete, f"{STORY} part {i}:", "batch", max_tokens=12 + i)
        for i in range(4)
    ]
    options = {"include_usage": True}
    text, reason, usage = streamed(france(agent, "chat", stream=True, stream_options=options))
    assert "Paris" in text
    assert reason == "stop"
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    for i, answer in enumerate(task.result() for task in batch):
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage.completion_tokens == 12 + i
        assert answer.choices[0].text.strip()
    # A prompt gives the first token; every later one is a hop through each layer on the host.
    hops = sum(11 + i for i in range(4)) * LAYERS
    agent.until(lambda: agent.stats()["joins"] >= joins + hops, "the figures of all hops")
    assert agent.stats()["joins"] == joins + hops
    assert agent.stats()["host_attention_rows"] == {"LS": 0, "BE": rows + hops}
    assert agent.stats()["device_attention_rows"]["LS"] > 0
    assert agent.stats()["moves_to_device"] == 0


def test_batch_knows_the_capital_too(agent):
    answer = france(agent, "batch")
    assert "Paris" in answer.choices[0].message.content
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert answer.choices[0].message.role == "assistant"


def test_metrics_tell_where_attention_ran(agent):
    agent.complete(STORY, "batch")
    stats = agent.until(agent.stats, "figures")
    read = agent.metric
    rows = "omniserve_engine_host_attention_rows_total"
    assert read(rows, **{"class": "BE"}) >= stats["host_attention_rows"]["BE"] > 0
    assert read(rows, **{"class": "LS"}) == 0
    assert read("omniserve_engine_joins_total") >= stats["joins"] > 0
    assert read("omniserve_engine_ready") == 1


def test_attainment_of_ls_services(agent):
    before = {name: agent.total(name) for name in ("chat", "strict")}
    for name in before:
        for _ in range(2):
            agent.complete("Hello", name, max_tokens=3)
    for name, attained in (("chat", 2), ("strict", 0)):
        after = agent.total(name)
        gained = {key: after[key] - before[name][key] for key in after}
        assert (gained["offered"], gained["finished"], gained["attained"]) == (2, 2, attained)
        labels = {"service": f"default/{name}", "class": "LS"}
        assert agent.metric("omniserve_slo_offered_total", **labels) == after["offered"]
        assert agent.metric("omniserve_slo_attained_total", **labels) == after["attained"]


def test_caller_errors_are_not_offered(agent):
    before = agent.total("chat")
    with pytest.raises(openai.BadRequestError):
        agent.complete("Hello", max_tokens=100_000)
    assert agent.total("chat") == before


@pytest.mark.parametrize("model", ["chat", "batch"])
def test_n_choices(agent, model):
    answer = agent.complete(STORY, model, n=2, temperature=1, seed=5, max_tokens=8)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert len({choice.text for choice in answer.choices}) == 2
    assert answer.usage.completion_tokens == 16
    prompt = agent.complete(STORY, model, max_tokens=1).usage.prompt_tokens
    assert answer.usage.prompt_tokens == prompt


@pytest.mark.parametrize("model", ["chat", "batch"])
def test_logprobs(agent, model):
    answer = france(agent, model, logprobs=True, top_logprobs=3)
    content = answer.choices[0].logprobs.content
    assert (
        b"".join(bytes(one.bytes) for one in content)
        .decode()
        .startswith(answer.choices[0].message.content)
    )
    for token in content:
        likeliest = [one.logprob for one in token.top_logprobs]
        assert likeliest == sorted(likeliest, reverse=True)
        assert len(likeliest) == 3
        assert token.logprob == likeliest[0] <= 0
        assert token.token in {one.token for one in token.top_logprobs}
