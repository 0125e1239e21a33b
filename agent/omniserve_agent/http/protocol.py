"""Request bodies: what is supported, with bounds. Unknown fields are refused, never ignored."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

Token = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Role = Literal["system", "developer", "user", "assistant"]

MAX_STOPS = 4
MAX_STOP_CHARS = 1024
MAX_BIASES = 1024
MAX_BIAS = 100


class StreamOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`include_usage`: one more event with the usage before `[DONE]`."""

    include_usage: bool = False


class Sampling(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What both kinds of request have in common.

    `top_k` 0 or -1 is off. `ignore_eos`, `top_k`, `min_p` and `repetition_penalty` are extensions.
    `user` and what follows it are hints for providers, and change nothing here (docs/api.md).
    """

    model: Annotated[str, Meta(min_length=1, max_length=256)]
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, Meta(ge=1, le=16)] = 1
    max_tokens: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] = 0
    min_p: Annotated[float, Meta(ge=0, le=1)] = 0.0
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] = 0.0
    repetition_penalty: Annotated[float, Meta(gt=0, le=100)] = 1.0
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: str | list[str] | None = None
    logit_bias: dict[str, Any] = {}  # token id → bias; `submits` knows the vocabulary
    ignore_eos: bool = False
    user: str | None = None
    metadata: dict[str, str] = {}
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None


class CompletionRequest(Sampling, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/completions. `prompt`: a text, token ids, or a list of either."""

    prompt: str | list[str | Token | list[Token]]
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None


class Message(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One message; `content` is a text or a list of `{"type": "text", "text": ...}`. `name` is for
    the model's template."""

    role: Role
    content: str | list[dict[str, Any]]
    name: Annotated[str, Meta(min_length=1, max_length=256)] | None = None


class ChatRequest(Sampling, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/chat/completions. Of the two limits `max_completion_tokens`, the newer, counts."""

    messages: Annotated[list[Message], Meta(min_length=1, max_length=4096)]
    max_completion_tokens: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None


# Fields that are not supported, with the values that ask for nothing and so may be sent; null is
# such a value everywhere.
NEUTRAL_VALUES: dict[str, tuple[object, ...]] = {
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "store": (False,),
    "modalities": (["text"],),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "stream_options.include_obfuscation": (False,),
    "messages[].tool_calls": ([],),
    "messages[].annotations": ([],),
}

# What is right where a type or a range alone says too little.
REMEDIES = {
    "role": "use system, developer, user or assistant",
    "content": "write a string or a list of text parts",
    "stop": f"write a string or a list of at most {MAX_STOPS} strings",
    "prompt": "write a string, token ids, or a list of strings or of token-id lists",
    "messages": "write a list of 1 to 4096 messages",
    "model": "name one of the models of GET /v1/models",
}
