"""What a caller gets wrong, through the whole agent."""

import json

import openai
import pytest

pytestmark = pytest.mark.real_model


@pytest.fixture(scope="module")
def agent(running_agent, write_manifest, documents):
    """Room for one device row and for 2844 tokens of host KV; one request may wait per class."""
    file = write_manifest(documents["chat"], documents["batch"])
    flags = ("--max-waiting", "1", "--max-device-rows", "1", "--no-be-residency")
    flags += ("--host-kv", "64Mi")
    with running_agent(file, *flags) as agent:
        yield agent


def test_unknown_model(agent):
    with pytest.raises(openai.NotFoundError) as caught:
        agent.complete("Hello", "nobody")
    assert caught.value.code == "model_not_found"
    assert "'nobody'" in str(caught.value)
    assert "chat" in str(caught.value)


@pytest.mark.parametrize("model", ["chat", "batch"])
def test_a_prompt_that_is_too_long_is_told_the_figures(agent, model):
    with pytest.raises(openai.BadRequestError) as caught:
        agent.complete([[1] * 3000], model)
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.param == "prompt"
    assert "3000 tokens" in str(caught.value)
    assert "2048" in str(caught.value)


def test_more_output_than_there_is_room_for(agent):
    with pytest.raises(openai.BadRequestError) as caught:
        agent.complete([[1] * 2000], max_tokens=49)
    assert caught.value.param == "max_tokens"
    assert "at most 48" in str(caught.value)


@pytest.mark.parametrize("body", [b'{"model": "chat", "prompt": ', b"\xff", b"[1]", b""])
def test_malformed_json(agent, body):
    status, answer = agent.fetch("/v1/completions", body)
    assert status == 400
    assert json.loads(answer)["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("field", "value"),
    [("temperature", "hot"), ("max_tokens", -1), ("best_of", 2), ("no_such_field", 1)],
)
def test_bad_fields_are_named(agent, field, value):
    body = {"model": "chat", "prompt": "Hello", field: value}
    status, answer = agent.fetch("/v1/completions", json.dumps(body).encode())
    assert status == 400
    assert json.loads(answer)["error"]["param"] == field


@pytest.mark.parametrize(
    ("model", "first_tokens", "second_tokens"),
    [("chat", 5, 5), ("batch", 1000, 1700)],  # one device row; host KV for one of the two
)
def test_a_full_queue_is_429_with_the_time_to_try_again(
    agent, together, model, first_tokens, second_tokens
):
    def state():
        figures = agent.stats().get("services", {}).get(f"default/{model}", {})
        return figures.get("running", 0), figures.get("waiting", 0)

    # The first is far from its end when it is closed below.
    first = [[11] * first_tokens]
    with agent.complete(first, model, max_tokens=1040, stream=True):
        agent.until(lambda: state() == (1, 0), "one running request")
        waiting = together.submit(agent.complete, [[12] * second_tokens], model, max_tokens=2)
        agent.until(lambda: state() == (1, 1), "one waiting request")
        refused_before = agent.total(model)["refused"]
        with pytest.raises(openai.RateLimitError) as caught:
            agent.complete("Hello", model)
        assert int(caught.value.response.headers["Retry-After"]) >= 1
        assert "the limit is 1" in str(caught.value)
        assert agent.total(model)["refused"] == refused_before + 1
    assert waiting.result().usage.completion_tokens == 2
