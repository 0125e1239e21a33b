"""One request as the API process keeps it: what was asked, what was delivered, what is unread."""

from __future__ import annotations

import asyncio
from typing import TypeVar

import msgspec

from omniserve_agent.engine.messages import ServiceClass, Submit, TokenEvent
from omniserve_agent.serving import EngineUnavailableError

T = TypeVar("T")


class Mailbox:
    """Events on their way to one reader. A late reader gets them merged into one.

    So it never holds more than one event, whose size `max_tokens` bounds.
    """

    def __init__(self) -> None:
        self._event: TokenEvent | None = None
        self._error: Exception | None = None
        self._filled = asyncio.Event()

    def put(self, event: TokenEvent) -> None:
        """Add an event behind those not read yet."""
        self._event = event if self._event is None else merged(self._event, event)
        self._filled.set()

    def fail(self, error: Exception) -> None:
        """End with `error` once what came before is read."""
        self._error = error
        self._filled.set()

    async def take(self) -> TokenEvent:
        """The next event; raises the error given to `fail`.

        Has no time-out of its own: supervision ends a silent engine, and with it every wait here.
        """
        await self._filled.wait()
        event, self._event = self._event, None
        if event is None:
            raise self._error or EngineUnavailableError("the request ended without an event")
        if self._error is None:
            self._filled.clear()
        return event


class Request:
    """A request that has not ended. `emitted` is what a replay continues from."""

    def __init__(self, submit: Submit) -> None:
        self.submit = submit
        self.emitted: list[int] = list(submit.emitted)
        self.mailbox = Mailbox()
        self.replays = 0
        self.kept = False  # waited here, so that "queue full" means wait again
        self._started = False

    @property
    def best_effort(self) -> bool:
        """Whether it survives its engine."""
        return self.submit.service_class is ServiceClass.BE

    @property
    def complete(self) -> bool:
        """Whether every token it may have was delivered."""
        return len(self.emitted) >= self.submit.max_tokens

    def message(self) -> Submit:
        """What to send to an engine now."""
        return msgspec.structs.replace(self.submit, emitted=list(self.emitted))

    def deliver(self, event: TokenEvent) -> None:
        """Record an engine's event and pass it on."""
        if self._started:  # prefix hits of a replay are not the prompt's
            event = msgspec.structs.replace(event, cached_tokens=0)
        self._started = True
        self.emitted += event.token_ids
        self.mailbox.put(event)


def merged(first: TokenEvent, second: TokenEvent) -> TokenEvent:
    """Two consecutive events of one request as one."""
    return TokenEvent(
        request_id=first.request_id,
        token_ids=first.token_ids + second.token_ids,
        logprobs=_joined(first.logprobs, second.logprobs),
        top_logprobs=_joined(first.top_logprobs, second.top_logprobs),
        finish_reason=second.finish_reason or first.finish_reason,
        cached_tokens=first.cached_tokens or second.cached_tokens,
        chosen_s=first.chosen_s,
    )


def _joined(first: list[T] | None, second: list[T] | None) -> list[T] | None:
    if first is None or second is None:
        return second if first is None else first
    return first + second
