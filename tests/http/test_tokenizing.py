"""What is tokenised on the event loop, and what in threads."""

import asyncio
import threading

import pytest

from omniserve_agent.http.settings import HttpSettings
from omniserve_agent.http.tokenizing import Tokenizing


class Noting:
    """A tokenizer that notes in which threads it worked."""

    def __init__(self):
        self.threads = set()

    def encode(self, text):
        self.threads.add(threading.current_thread())
        return [len(text)]

    def encode_chat(self, messages):
        self.threads.add(threading.current_thread())
        return [len(messages)]


@pytest.fixture
def tokenizing():
    found = Tokenizing(HttpSettings(threaded_tokenizing_chars=1000))
    yield found
    found.close()


def on_the_loop(work, tokenizer):
    asyncio.run(work)
    return tokenizer.threads == {threading.main_thread()}


@pytest.mark.parametrize(
    ("texts", "inline"),
    [
        (["a" * 999], True),
        (["a" * 1000], False),
        (["a" * 100] * 9, True),
        (["a" * 100] * 10, False),
    ],
)
def test_prompts_count_together(tokenizing, texts, inline):
    tokenizer = Noting()
    assert on_the_loop(tokenizing.encode(tokenizer, texts), tokenizer) == inline


@pytest.mark.parametrize(
    ("messages", "inline"),
    [
        ([{"role": "user", "content": "a" * 900}], True),
        ([{"role": "user", "content": "a" * 990}], False),
        ([{"role": "user", "content": ""}] * 30, False),
        ([{"role": "user", "content": "", "name": "a" * 1000}], False),
    ],
)
def test_many_messages_and_long_names_count_too(tokenizing, messages, inline):
    tokenizer = Noting()
    assert on_the_loop(tokenizing.encode_chat(tokenizer, messages), tokenizer) == inline


def test_ids_come_in_the_order_of_their_prompts(tokenizing):
    found = asyncio.run(tokenizing.encode(Noting(), ["abc", "a" * 2000, ""]))
    assert found == [[3], [2000], [0]]
