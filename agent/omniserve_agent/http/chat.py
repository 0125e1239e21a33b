"""POST /v1/chat/completions."""

from __future__ import annotations

import secrets
import time
import uuid
from collections.abc import Sequence
from typing import Any

from aiohttp import web

from omniserve_agent.http.arrival import arriving
from omniserve_agent.http.chat_template import ChatTemplateError
from omniserve_agent.http.choice import Chunk, ScoredToken
from omniserve_agent.http.decoding import decode, read_body
from omniserve_agent.http.errors import invalid
from omniserve_agent.http.generation import Usage, Whole
from omniserve_agent.http.loading import loaded_tokenizer
from omniserve_agent.http.logprobs import chat_logprobs
from omniserve_agent.http.protocol import ChatRequest, Message
from omniserve_agent.http.respond import respond
from omniserve_agent.http.state import STATE, State
from omniserve_agent.http.submits import Job
from omniserve_agent.http.tokenizer import ModelTokenizer
from omniserve_agent.serving import ServedService


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """The handler."""
    state = request.app[STATE]
    with arriving(request) as arrival:
        body = await read_body(request)
        arrival.body_read()
        wanted = decode(body, ChatRequest)
        service = arrival.admit(request, wanted.model)
        tokenizer = await loaded_tokenizer(state, service)
        job = await _job(state, service, tokenizer, wanted)
        output = ChatFormat(wanted, tokenizer)
        return await respond(request, state, arrival, job, tokenizer, output, continues_text=False)


async def _job(
    state: State, service: ServedService, tokenizer: ModelTokenizer, wanted: ChatRequest
) -> Job:
    logprobs, newer = _logprobs(wanted), wanted.max_completion_tokens
    messages = [template_message(i, message) for i, message in enumerate(wanted.messages)]
    return Job(
        service=service,
        prompts=[await _prompt_ids(state, tokenizer, messages)],
        sampling=wanted,
        seed=secrets.randbits(63) if wanted.seed is None else wanted.seed,
        logprobs=logprobs,
        max_tokens=wanted.max_tokens if newer is None else newer,
        vocabulary_size=tokenizer.vocabulary_size,
        prompt_field="messages",
        limit_field="max_tokens" if newer is None else "max_completion_tokens",
        eos_id=tokenizer.eos_id,
    )


def template_message(index: int, message: Message) -> dict[str, str]:
    """Role and text as templates know them: `developer` is the newer name of `system`; text parts
    are joined by line ends. ApiError 400 for parts that are not text."""
    role = "system" if message.role == "developer" else message.role
    named = {"role": role} if message.name is None else {"role": role, "name": message.name}
    if isinstance(message.content, str):
        return named | {"content": message.content}
    where = f"messages[{index}].content"
    texts = [_part_text(f"{where}[{i}]", part) for i, part in enumerate(message.content)]
    return named | {"content": "\n".join(texts)}


def _part_text(where: str, part: dict[str, Any]) -> str:
    if part.get("type") != "text":
        raise invalid(
            f"{where}.type is {part.get('type')!r}; only 'text' parts are supported",
            f"{where}.type",
            "unsupported_value",
        )
    text = part.get("text")
    if not isinstance(text, str):
        raise invalid(f"{where}.text is {type(text).__name__}; write a string", f"{where}.text")
    unknown = sorted(part.keys() - {"type", "text"})
    if unknown:
        param = f"{where}.{unknown[0]}"
        raise invalid(f"{param} is not supported; remove it", param, "unsupported_parameter")
    return text


async def _prompt_ids(
    state: State, tokenizer: ModelTokenizer, messages: Sequence[dict[str, str]]
) -> list[int]:
    try:
        return await state.tokenizing.encode_chat(tokenizer, messages)
    except ChatTemplateError as error:
        raise invalid(f"messages do not fit this model's template: {error}", "messages") from error


def _logprobs(wanted: ChatRequest) -> int | None:
    if wanted.logprobs:
        return wanted.top_logprobs or 0
    if wanted.top_logprobs is not None:
        raise invalid("top_logprobs needs logprobs; set logprobs to true", "top_logprobs")
    return None


class ChatFormat:
    """The `chat.completion` object and its chunks."""

    def __init__(self, wanted: ChatRequest, tokenizer: ModelTokenizer) -> None:
        self._frame = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": "chat.completion.chunk" if wanted.stream else "chat.completion",
            "created": int(time.time()),
            "model": wanted.model,
        }
        self._with_logprobs = wanted.logprobs
        self._tokenizer = tokenizer
        options = wanted.stream_options
        self._usage_field = {"usage": None} if options and options.include_usage else {}

    def opening(self, index: int) -> dict[str, Any]:
        """The role."""
        return self._chunk(index, {"role": "assistant", "content": ""}, None, None)

    def event(self, chunk: Chunk) -> dict[str, Any]:
        """A piece of the message."""
        delta = {"content": chunk.text} if chunk.text else {}
        logprobs = self._logprobs(chunk.scored) if chunk.scored else None
        return self._chunk(chunk.index, delta, logprobs, chunk.finish_reason)

    def usage_event(self, usage: Usage) -> dict[str, Any]:
        """No choices, only the usage."""
        return self._frame | {"choices": [], "usage": usage.body()}

    def whole(self, choices: Sequence[Whole], usage: Usage) -> dict[str, Any]:
        """All choices."""
        written = [
            {
                "index": index,
                "message": {"role": "assistant", "content": choice.text, "refusal": None},
                "logprobs": self._logprobs(choice.scored),
                "finish_reason": choice.finish_reason,
            }
            for index, choice in enumerate(choices)
        ]
        return self._frame | {"choices": written, "usage": usage.body()}

    def _chunk(
        self,
        index: int,
        delta: dict[str, str],
        logprobs: dict[str, Any] | None,
        finish_reason: str | None,
    ) -> dict[str, Any]:
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": finish_reason,
        }
        return self._frame | {"choices": [choice]} | self._usage_field

    def _logprobs(self, scored: Sequence[ScoredToken]) -> dict[str, Any] | None:
        return chat_logprobs(self._tokenizer, scored) if self._with_logprobs else None
