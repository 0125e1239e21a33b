"""Every kind of bad input: status, the field at fault, and what would be right."""

import json

import pytest

from omniserve_agent.http.chat import template_message
from omniserve_agent.http.protocol import Message
from omniserve_agent.http.settings import HttpSettings

COMPLETION_ERRORS = [
    ({"prompt": ...}, "prompt", "missing; write a string, token ids"),
    ({"model": ...}, "model", "name one of the models"),
    ({"model": 5}, "model", "model is 5: expected a string, got an integer"),
    ({"prompt": {}}, "prompt", "expected a string or an array, got an object; write a"),
    ({"prompt": []}, "prompt", "empty list"),
    ({"prompt": [[]]}, "prompt", "empty"),
    ({"prompt": ""}, "prompt", "empty"),
    ({"prompt": ["a", 1]}, "prompt", "mixes kinds"),
    ({"prompt": ["a", [1]]}, "prompt", "mixes kinds"),
    ({"prompt": [1.5]}, "prompt[0]", "expected an integer, a string or an array, got a number"),
    ({"prompt": [-1]}, "prompt[0]", "expected an integer >= 0"),
    ({"prompt": [1, 100000]}, "prompt", "token id 100000; this model's ids are 0 to"),
    ({"prompt": ["a"] * 129}, "prompt", "at most 128"),
    ({"prompt": ["a"] * 9, "n": 16}, "n", "9 prompts with n 16 are 144 choices"),
    ({"n": 0}, "n", "n is 0: expected an integer >= 1"),
    ({"n": 17}, "n", "expected an integer <= 16"),
    ({"n": True}, "n", "got a boolean"),
    ({"n": "1"}, "n", "got a string"),
    ({"max_tokens": 0}, "max_tokens", ">= 1"),
    ({"max_tokens": "x"}, "max_tokens", "expected an integer or null, got a string"),
    ({"max_tokens": 8.5}, "max_tokens", "expected an integer or null, got a number"),
    ({"max_tokens": 1e300}, "max_tokens", "<= 2147483647"),
    ({"max_tokens": 1000}, "max_tokens", "takes at most 256 together: ask for at most"),
    ({"temperature": 2.1}, "temperature", "expected a number <= 2"),
    ({"temperature": -0.1}, "temperature", ">= 0"),
    ({"top_p": 0}, "top_p", "> 0"),
    ({"top_k": -2}, "top_k", ">= -1"),
    ({"min_p": 1.1}, "min_p", "<= 1"),
    ({"presence_penalty": 3}, "presence_penalty", "<= 2"),
    ({"frequency_penalty": -3}, "frequency_penalty", ">= -2"),
    ({"repetition_penalty": 0}, "repetition_penalty", "> 0"),
    ({"seed": 2**63}, "seed", "<= 9223372036854775807"),
    ({"seed": 1.5}, "seed", "got a number"),
    ({"stop": 5}, "stop", "write a string or a list of at most 4 strings"),
    ({"stop": ["a"] * 5}, "stop", "has 5 strings; give at most 4"),
    ({"stop": ""}, "stop", "0 characters"),
    ({"stop": "x" * 1025}, "stop", "1025 characters"),
    ({"logprobs": 21}, "logprobs", "<= 20"),
    ({"logprobs": True}, "logprobs", "got a boolean"),
    ({"logit_bias": {"x": 1}}, "logit_bias", "names token 'x'; use token ids 0 to"),
    ({"logit_bias": {"99999": 1}}, "logit_bias", "names token '99999'"),
    ({"logit_bias": {"5": 1, "17": 101}}, "logit_bias.17", "gives token 17 101; use numbers from"),
    ({"logit_bias": {"17": True}}, "logit_bias.17", "gives token 17 true"),
    ({"logit_bias": {"17": [1]}}, "logit_bias.17", "gives token 17 [1]"),
    ({"logit_bias": []}, "logit_bias", "expected an object, got an array"),
    ({"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias", "1025 entries"),
    ({"stream": "yes"}, "stream", "expected a boolean"),
    ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "not supported"),
    (
        {"stream": True, "stream_options": {"include_obfuscation": True}},
        "stream_options.include_obfuscation",
        "not supported",
    ),
    ({"stream_options.include_obfuscation": False}, "stream_options.include_obfuscation", "not"),
    ({"metadata": "x"}, "metadata", "expected an object, got a string"),
    ({"echo": True}, "echo", "echo is not supported; remove it"),
    ({"best_of": 2}, "best_of", "not supported"),
    ({"suffix": "x"}, "suffix", "not supported"),
    ({"prompt_logprobs": 1}, "prompt_logprobs", "not supported"),
]

CHAT_ERRORS = [
    ({"messages": ...}, "messages", "missing; write a list of 1 to 4096 messages"),
    ({"messages": []}, "messages", "write a list of 1 to 4096 messages"),
    ({"messages": "hi"}, "messages", "write a list of 1 to 4096 messages"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role", "use system, developer"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "missing; write a string or a list"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "write a string or"),
    (
        {"messages": [{"role": "user", "content": "x", "tool_calls": [1]}]},
        "messages[0].tool_calls",
        "not supported",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "messages[0].content[0].type",
        "is 'image_url'; only 'text' parts",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]},
        "messages[0].content[0].text",
        "write a string",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "b": 1}]}]},
        "messages[0].content[0].b",
        "not supported",
    ),
    ({"messages": [{"role": "user", "content": "forbidden"}]}, "messages", "the user says"),
    ({"messages": [{"role": "user", "content": "x " * 500}]}, "messages", "at most 256"),
    ({"top_logprobs": 2}, "top_logprobs", "set logprobs to true"),
    ({"logprobs": 2}, "logprobs", "expected a boolean"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "<= 20"),
    (
        {"max_tokens": 1, "max_completion_tokens": 1000},
        "max_completion_tokens",
        "takes at most 256 together",
    ),
    ({"messages": [{"role": "user", "content": "x", "name": 5}]}, "messages[0].name", "a string"),
    ({"tools": [{"type": "function"}], "tool_choice": "auto"}, "tools", "not supported"),
    ({"max_completion_tokens": 1000}, "max_completion_tokens", "takes at most 256 together"),
    ({"tools": [{"type": "function"}]}, "tools", "tools is not supported; remove it"),
    ({"response_format": {"type": "json_object"}}, "response_format", "not supported"),
    ({"functions": []}, "functions", "not supported"),
]

BAD, MEDIA = (400, "invalid_value"), (415, "unsupported_media_type")
LARGE = (413, "request_too_large")


@pytest.mark.parametrize(
    ("path", "changes", "param", "words"),
    [("/v1/completions", *row) for row in COMPLETION_ERRORS]
    + [("/v1/chat/completions", *row) for row in CHAT_ERRORS],
)
async def test_fields(engine, service, serving, say, path, changes, param, words):
    body = {"model": "chat"}
    if "chat" in path:
        body["messages"] = [{"role": "user", "content": "Hello"}]
    else:
        body["prompt"] = "Hello"
    body = {name: v for name, v in (body | changes).items() if v is not ...}
    backend = engine(say("x"))
    async with serving([service(backend)]) as client:
        status, answer, _ = await client.post(path, json=body)
    error = answer["error"]
    assert (status, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert words in error["message"]
    assert error["code"]
    assert param.split("[")[0].split(".")[0] in error["message"]
    assert backend.submits == []


@pytest.mark.parametrize(
    ("body", "content_type", "refusal", "words"),
    [
        (b'{"model":', "application/json", BAD, "not valid JSON"),
        (b"", "application/json", BAD, "not valid JSON"),
        (b"\xff", "application/json", BAD, "not valid JSON"),
        (b'{"temperature": NaN}', "application/json", BAD, "not valid JSON"),
        (b"[" * 5000, "application/json", BAD, "not valid JSON"),
        (b"[]", "application/json", BAD, "send a JSON object"),
        (b'"x"', "application/json", BAD, "the body is a string; send a JSON object"),
        (b"null", "application/json", BAD, "the body is null; send a JSON object"),
        (b"{}", "text/plain", MEDIA, "send JSON as application/json"),
        (b"{}", "application/x-www-form-urlencoded", MEDIA, "send JSON as application/json"),
        (b'{"prompt": "' + b"x" * 9000 + b'"}', "application/json", LARGE, "than 8192 bytes"),
    ],
)
async def test_bodies(engine, service, serving, say, body, content_type, refusal, words):
    settings = HttpSettings(max_body_bytes=8192)
    async with serving([service(engine(say("x")))], settings=settings) as client:
        found, answer, _ = await client.post(
            "/v1/completions", data=body, headers={"Content-Type": content_type}
        )
    assert (found, answer["error"]["code"]) == refusal
    assert words in answer["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/completions", "POST"),
        ("HEAD", "/v1/chat/completions", "POST"),
        ("POST", "/v1/models", "GET, HEAD"),
        ("DELETE", "/v1/models/chat", "GET, HEAD"),
        ("OPTIONS", "/v1/completions", "POST"),
        ("PUT", "/healthz", "GET, HEAD"),
        ("TRACE", "/metrics", "GET, HEAD"),
    ],
)
async def test_a_refused_method_names_those_allowed(
    engine, service, serving, say, method, path, allowed
):
    async with (
        serving([service(engine(say("x")))]) as client,
        client.session.request(method, client.url + path) as response,
    ):
        assert (response.status, response.headers.get("Allow")) == (405, allowed)
        body = await response.read()
    if method == "HEAD":
        assert not body
    else:
        error = json.loads(body)["error"]
        assert (error["type"], error["code"]) == ("invalid_request_error", "method_not_allowed")


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/chat", "/healthz", "/metrics"])
async def test_head_is_get_without_the_body(engine, service, serving, say, path):
    async with serving([service(engine(say("x")))]) as client:
        _, _, got = await client.get(path)
        async with client.session.head(client.url + path) as response:
            assert response.status == 200
            assert response.headers["Content-Type"] == got["Content-Type"]
            assert await response.read() == b""


async def test_paths_methods_and_models(engine, service, serving, say):
    async with serving([service(engine(say("x")))]) as client:
        status, answer, _ = await client.get("/v1/nothing")
        assert (status, answer["error"]["code"]) == (404, "no_path")
        status, answer, _ = await client.get("/v1/completions")
        assert (status, answer["error"]["code"]) == (405, "method_not_allowed")
        assert "use POST" in answer["error"]["message"]
        status, answer, _ = await client.complete(model="none")
        assert (status, answer["error"]["code"]) == (404, "model_not_found")
        assert "use one of: chat" in answer["error"]["message"]


async def test_a_prompt_longer_than_the_model_tells_the_figures(engine, service, serving, say):
    backend = engine(say("x"))
    async with serving([service(backend, max_model_len=32)]) as client:
        status, answer, _ = await client.complete(prompt=[5] * 32)
        fits, _, _ = await client.complete(prompt=[5] * 31)
    assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
    assert "has 32 tokens" in answer["error"]["message"]
    assert "at most 32" in answer["error"]["message"]
    assert fits == 200
    assert backend.submits[0].max_tokens == 1


@pytest.mark.parametrize(
    "neutral",
    [
        {"tools": [], "response_format": {"type": "text"}, "store": False},
        {"stop": None, "seed": None, "logit_bias": None, "tools": None, "functions": None},
        {"parallel_tool_calls": True, "tool_choice": "none", "n": 1},
        {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "none"},
        {"stream": True, "stream_options": {"include_obfuscation": False, "include_usage": None}},
        {"metadata": {"job": "7"}, "prompt_cache_key": "k", "safety_identifier": "s", "user": "u"},
        {"max_tokens": 8.0, "temperature": 1, "top_k": -1.0},
    ],
)
async def test_values_that_ask_for_nothing_are_accepted(engine, service, serving, say, neutral):
    body = {"model": "chat", "messages": [{"role": "user", "content": "Hello", "name": None}]}
    async with serving([service(engine(say("x")))]) as client:
        status, _, _ = await client.post("/v1/chat/completions", json=body | neutral)
    assert status == 200


async def test_an_answer_can_be_sent_back_as_it_came(engine, service, serving, say, tokenizer):
    backend = engine(say("x"))
    answer = {"role": "assistant", "content": "Hi", "refusal": None, "audio": None}
    async with serving([service(backend)]) as client:
        for nothing in ([], None):
            sent = answer | {"tool_calls": nothing, "annotations": nothing, "function_call": None}
            messages = [sent, {"role": "user", "content": "Hello"}]
            status, _, _ = await client.post(
                "/v1/chat/completions", json={"model": "chat", "messages": messages}
            )
            assert status == 200
    text = "<|im_start|>assistant\nHi<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
    prompt = tokenizer.encode(text + "<|im_start|>assistant\n")
    assert [submit.prompt for submit in backend.submits] == [prompt, prompt]


async def test_the_newer_of_two_limits_counts(engine, service, serving, say):
    backend = engine(say("x"))
    body = {"model": "chat", "messages": [{"role": "user", "content": "Hello"}]}
    async with serving([service(backend)]) as client:
        for older, newer in ((5, 5), (5, 7), (7, 5)):
            limits = {"max_tokens": older, "max_completion_tokens": newer}
            await client.post("/v1/chat/completions", json=body | limits)
    assert [submit.max_tokens for submit in backend.submits] == [5, 7, 5]


def test_a_message_s_name_reaches_the_template():
    named = Message(role="user", content="Hello", name="Ada")
    assert template_message(0, named) == {"role": "user", "name": "Ada", "content": "Hello"}
    assert "name" not in template_message(0, Message(role="user", content="Hello"))
