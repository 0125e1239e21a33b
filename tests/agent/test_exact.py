"""Float32, where greedy and seeded texts are exact: they depend on nothing that runs beside them,
nor on an engine that dies under them."""

import signal

import openai
import pytest

pytestmark = pytest.mark.real_model

STORY = "Once upon a time, in a village by the sea,"


@pytest.fixture(scope="module")
def agent(running_agent, write_manifest, documents):
    file = write_manifest(documents["chat"], documents["batch"])
    with running_agent(file, "--dtype", "float32", "--no-be-residency") as agent:
        yield agent


def text(answer):
    return answer.choices[0].text


def rest(stream):
    return "".join(chunk.choices[0].text for chunk in stream)


@pytest.mark.parametrize("model", ["chat", "batch"])
def test_a_seed_gives_one_text_whatever_else_runs(agent, together, model):
    wanted = {"model": model, "temperature": 1, "seed": 42, "max_tokens": 10}
    alone = text(agent.complete(STORY, **wanted))
    others = [
        together.submit(agent.complete, f"{i}: {STORY}", name, max_tokens=12, temperature=1)
        for i, name in enumerate(["chat", "batch", "batch"])
    ]
    beside = text(agent.complete(STORY, **wanted))
    assert beside == alone
    assert text(agent.complete(STORY, **wanted | {"seed": 43})) != alone
    assert all(other.result().usage.completion_tokens == 12 for other in others)


@pytest.mark.parametrize("model", ["chat", "batch"])
def test_stop_strings(agent, model):
    whole = text(agent.complete(STORY, model, max_tokens=16))
    stop = whole[len(whole) // 2 :][:5]
    answer = agent.complete(STORY, model, max_tokens=16, stop=["never said", stop])
    assert text(answer) == whole.partition(stop)[0]
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens < 16
    stream = agent.complete(STORY, model, max_tokens=16, stop=stop, stream=True)
    assert rest(stream) == whole.partition(stop)[0]


def test_a_killed_engine(agent, together):
    """LS requests end with an error, BE requests go on where they were, the engine comes back."""

    def batch(index, **fields):
        prompt = f"{STORY} part {index}:"
        return together.submit(agent.complete, prompt, "batch", max_tokens=40, **fields)

    hello = text(agent.complete(STORY, max_tokens=4))
    undisturbed = [text(task.result()) for task in [batch(i) for i in range(3)]]
    finished = agent.total("batch")["finished"]
    chat = agent.complete(STORY, max_tokens=1500, stream=True)
    tasks = [batch(0, stream=True), batch(1, stream=True), batch(2)]
    streams = [task.result() for task in tasks[:2]]
    begun = [next(stream).choices[0].text for stream in (*streams, chat)]
    (engine,) = agent.engine_processes()
    engine.send_signal(signal.SIGKILL)

    with pytest.raises(openai.APIError) as caught:
        list(chat)
    assert caught.value.code == "engine_unavailable"
    assert caught.value.type == "service_unavailable_error"
    assert "SIGKILL" in str(caught.value)
    with pytest.raises(openai.InternalServerError) as caught:  # not back yet: it has to load
        agent.complete(STORY)
    assert caught.value.status_code == 503
    assert int(caught.value.response.headers["Retry-After"]) >= 1
    assert agent.total("batch")["finished"] == finished  # so all three were under way
    late = batch(0)

    agent.until(lambda: agent.fetch("/readyz")[0] == 200, "the engine's return")
    assert agent.engine()["restarts"] == 1
    assert text(agent.complete(STORY, max_tokens=4)) == hello
    assert [first + rest(s) for first, s in zip(begun, streams, strict=False)] == undisturbed[:2]
    assert text(tasks[2].result()) == undisturbed[2]
    assert text(late.result()) == undisturbed[0]
    assert agent.total("batch")["failed"] == 0
