"""Running a job: choices into the engine, chunks out, times into the books."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from aiohttp import web

from omniserve_agent.engine.messages import ServiceClass, Submit
from omniserve_agent.http.arrival import Arrival
from omniserve_agent.http.attainment import Outcome
from omniserve_agent.http.choice import ChoiceText, Chunk, ScoredToken
from omniserve_agent.http.errors import unavailable
from omniserve_agent.http.merge import Merge, Silence, choice_chunks
from omniserve_agent.http.open_requests import OpenRequest
from omniserve_agent.http.records import ClientGoneError, Record, recorded
from omniserve_agent.http.state import State
from omniserve_agent.serving import ServedService


@dataclass
class Whole:
    """A choice's whole output, for answers in one piece."""

    text: str = ""
    scored: list[ScoredToken] = field(default_factory=list)
    finish_reason: Literal["stop", "length"] | None = None


@dataclass
class Usage:
    """Tokens of one HTTP request; each prompt counts once, however many choices it has."""

    prompt_tokens: int
    completion_tokens: int = 0
    cached_tokens: int = 0

    def body(self) -> dict[str, Any]:
        """OpenAI's usage object."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }


class Format(Protocol):
    """How one endpoint writes its answers."""

    def opening(self, index: int) -> dict[str, Any] | None:
        """The event before a choice's first chunk, if there is one."""

    def event(self, chunk: Chunk) -> dict[str, Any]:
        """One chunk as an event."""

    def usage_event(self, usage: Usage) -> dict[str, Any]:
        """The event that carries the usage."""

    def whole(self, choices: Sequence[Whole], usage: Usage) -> dict[str, Any]:
        """The answer in one piece."""


@dataclass
class Run:
    """A job in the engine."""

    merge: Merge
    records: Sequence[Record]
    usage: Usage
    choices_per_prompt: int

    def wrote(self, chunk: Chunk) -> None:
        """The chunk has been written (or could have been): take its time and its tokens."""
        record = self.records[chunk.index]
        record.wrote(chunk.tokens, chunk.cached_tokens, chunk.chosen_s)
        self.usage.completion_tokens += chunk.tokens
        if chunk.index % self.choices_per_prompt == 0:
            self.usage.cached_tokens += chunk.cached_tokens
        if chunk.finish_reason is not None:
            record.end(Outcome.FINISHED)


def limit_tokens(state: State, service: ServedService) -> int:
    """Prompt and output tokens a request of `service` may have; ApiError 503 while unknown.

    LS requests are refused at once while the engine is away; BE requests may wait for it.
    """
    ready = service.backend.ready
    if ready is not None:
        state.limits[service.key] = ready.max_request_tokens[service.service_class]
    elif service.service_class is ServiceClass.LS or service.key not in state.limits:
        raise unavailable(
            f"the engine of {service.key} is not ready: {service.backend.progress}; try again"
        )
    return min(state.limits[service.key], service.max_model_len or 2**31 - 1)


@asynccontextmanager
async def running(
    state: State,
    service: ServedService,
    wanted: Sequence[Submit],
    texts: Sequence[ChoiceText],
    choices_per_prompt: int,
    arrival: Arrival,
) -> AsyncIterator[Run]:
    """A run of the submits; when left, whatever still runs is cancelled and every record ended."""
    silences = [Silence(_silence_s(state, service)) for _ in wanted]
    prompt_tokens = sum(len(submit.prompt) for submit in wanted[::choices_per_prompt])
    records = [
        state.books.open(service, arrival.received_s, len(submit.prompt)) for submit in wanted
    ]
    merge = Merge(
        [
            choice_chunks(service.backend, submit, text, silence)
            for submit, text, silence in zip(wanted, texts, silences, strict=True)
        ],
        silences,
    )
    usage = Usage(prompt_tokens)
    state.merges.add(merge)
    try:
        opened = OpenRequest(service, wanted)
        with recorded(records), state.open_requests.added(arrival.request_id, opened):
            yield Run(merge, records, usage, choices_per_prompt)
    finally:
        state.merges.discard(merge)
        arrival.ran(usage.prompt_tokens, usage.completion_tokens, [r.ttft_ms for r in records])
        await merge.close()


async def chunks(request: web.Request, state: State, run: Run) -> AsyncGenerator[Chunk | None]:
    """All chunks of the run; None now and then while there is none. ClientGoneError when the
    client has left."""
    while run.merge.unfinished:
        chunk = await run.merge.next(state.settings.keep_alive_comment_s)
        if request.transport is None or request.transport.is_closing():
            raise ClientGoneError("the client closed the connection")
        yield chunk


def _silence_s(state: State, service: ServedService) -> float:
    is_ls = service.service_class is ServiceClass.LS
    return state.settings.ls_silence_s if is_ls else state.settings.be_silence_s
