"""POST /v1/completions."""

from __future__ import annotations

import secrets
import time
import uuid
from collections.abc import Sequence
from typing import Any

from aiohttp import web

from omniserve_agent.http.arrival import arriving
from omniserve_agent.http.choice import Chunk, ScoredToken
from omniserve_agent.http.decoding import decode, read_body
from omniserve_agent.http.errors import invalid
from omniserve_agent.http.generation import Usage, Whole
from omniserve_agent.http.loading import loaded_tokenizer
from omniserve_agent.http.logprobs import completion_logprobs
from omniserve_agent.http.protocol import REMEDIES, CompletionRequest
from omniserve_agent.http.respond import respond
from omniserve_agent.http.state import STATE, State
from omniserve_agent.http.submits import Job
from omniserve_agent.http.tokenizer import ModelTokenizer

DEFAULT_TOKENS = 16  # OpenAI's default here; chats may go on as long as there is room


async def completions(request: web.Request) -> web.StreamResponse:
    """The handler."""
    state = request.app[STATE]
    with arriving(request) as arrival:
        body = await read_body(request)
        arrival.body_read()
        wanted = decode(body, CompletionRequest)
        service = arrival.admit(request, wanted.model)
        tokenizer = await loaded_tokenizer(state, service)
        prompts = await prompt_ids(state, tokenizer, wanted.prompt)
        job = Job(
            service=service,
            prompts=prompts,
            sampling=wanted,
            seed=secrets.randbits(63) if wanted.seed is None else wanted.seed,
            logprobs=wanted.logprobs,
            max_tokens=wanted.max_tokens,
            vocabulary_size=tokenizer.vocabulary_size,
            prompt_field="prompt",
            default_tokens=DEFAULT_TOKENS,
            eos_id=tokenizer.eos_id,
        )
        output = CompletionFormat(wanted, tokenizer)
        return await respond(request, state, arrival, job, tokenizer, output, continues_text=True)


async def prompt_ids(
    state: State, tokenizer: ModelTokenizer, prompt: str | list[str | int | list[int]]
) -> list[list[int]]:
    """Token ids of each prompt; ApiError 400 for a mixed or empty list or an unknown token."""
    if isinstance(prompt, str):
        return await state.tokenizing.encode(tokenizer, [prompt])
    texts = [item for item in prompt if isinstance(item, str)]
    ids = [item for item in prompt if isinstance(item, int)]
    lists = [item for item in prompt if isinstance(item, list)]
    if not prompt or max(len(texts), len(ids), len(lists)) < len(prompt):
        fault = "mixes kinds" if prompt else "is an empty list"
        raise invalid(f"prompt {fault}; {REMEDIES['prompt']}", "prompt")
    most = state.settings.max_choices
    if len(texts or lists) > most:
        raise invalid(f"prompt has {len(prompt)} prompts; send at most {most}", "prompt")
    if texts:
        return await state.tokenizing.encode(tokenizer, texts)
    return _known([ids] if ids else lists, tokenizer.vocabulary_size)


def _known(prompts: list[list[int]], vocabulary_size: int) -> list[list[int]]:
    unknown = next((token for ids in prompts for token in ids if token >= vocabulary_size), None)
    if unknown is not None:
        raise invalid(
            f"prompt holds token id {unknown}; this model's ids are 0 to {vocabulary_size - 1}",
            "prompt",
        )
    return prompts


class CompletionFormat:
    """The `text_completion` object."""

    def __init__(self, wanted: CompletionRequest, tokenizer: ModelTokenizer) -> None:
        self._frame = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": wanted.model,
        }
        self._logprobs = wanted.logprobs
        self._tokenizer = tokenizer
        options = wanted.stream_options
        self._usage_field = {"usage": None} if options and options.include_usage else {}

    def opening(self, index: int) -> dict[str, Any] | None:
        """Completions have none."""
        return None

    def event(self, chunk: Chunk) -> dict[str, Any]:
        """A chunk."""
        choice = self._choice(chunk.index, chunk.text, chunk.scored, chunk.finish_reason)
        return self._frame | {"choices": [choice]} | self._usage_field

    def usage_event(self, usage: Usage) -> dict[str, Any]:
        """No choices, only the usage."""
        return self._frame | {"choices": [], "usage": usage.body()}

    def whole(self, choices: Sequence[Whole], usage: Usage) -> dict[str, Any]:
        """All choices."""
        written = [
            self._choice(index, choice.text, choice.scored, choice.finish_reason)
            for index, choice in enumerate(choices)
        ]
        return self._frame | {"choices": written, "usage": usage.body()}

    def _choice(
        self, index: int, text: str, scored: Sequence[ScoredToken], finish_reason: str | None
    ) -> dict[str, Any]:
        logprobs = None
        if self._logprobs is not None:
            logprobs = completion_logprobs(self._tokenizer, scored, self._logprobs)
        return {
            "index": index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": finish_reason,
        }
