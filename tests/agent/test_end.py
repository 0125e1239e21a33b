"""SIGTERM: what is under way is finished, within the grace period, and nothing is left behind."""

import signal
import socket
from pathlib import Path
from urllib.parse import urlsplit

import openai
import pytest

pytestmark = pytest.mark.real_model

HYBRID = Path(__file__).parents[2] / "examples" / "hybrid.yaml"
MARGIN_S = 30  # for saying farewell and stopping the engine on a busy machine


def refuses_connections(url):
    address = urlsplit(url)
    try:
        socket.create_connection((address.hostname, address.port), timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False


def test_what_runs_is_finished_whole(running_agent, together, alive):
    with running_agent(HYBRID) as agent:
        started = agent.children()
        options = {"include_usage": True}
        stream = agent.complete("Hello", max_tokens=60, stream=True, stream_options=options)
        first = next(stream)
        batch = together.submit(agent.complete, "Hello", "batch", max_tokens=60)
        agent.until(lambda: agent.service("batch")["running"], "the batch request")
        agent.terminate()
        agent.until(lambda: "draining" in agent.events(), "the drain")
        agent.until(lambda: refuses_connections(agent.url), "refused connections")
        chunks = [first, *stream]
        assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
        assert chunks[-1].usage.completion_tokens == 60
        assert batch.result().usage.completion_tokens == 60
        assert agent.process.wait(MARGIN_S) == 0
        assert alive(started) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_everything_at_once(running_agent, alive, number):
    with running_agent(HYBRID, "--drain-grace", "3600") as agent:
        started = agent.children()
        stream = agent.complete("Hello", max_tokens=4000, stream=True)
        next(stream)
        agent.terminate()
        agent.until(lambda: "draining" in agent.events(), "the drain")
        agent.process.send_signal(number)
        with pytest.raises(openai.APIError, match="shutting down"):
            list(stream)
        assert agent.process.wait(MARGIN_S) == 0
        assert alive(started) == []


def test_what_never_ends_is_cut_off_after_the_grace_period(running_agent, alive):
    with running_agent(HYBRID, "--drain-grace", "0.5") as agent:
        started = agent.children()
        stream = agent.complete("Hello", max_tokens=4000, stream=True)
        next(stream)
        agent.terminate()
        with pytest.raises(openai.APIError, match="shutting down"):
            list(stream)
        assert agent.process.wait(MARGIN_S) == 0
        assert alive(started) == []
