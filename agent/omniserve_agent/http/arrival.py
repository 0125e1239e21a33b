"""A completion request up to its submission: admission, and counting what ends before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from aiohttp import web

from omniserve_agent.http.access import PAUSED_CODE, admitted
from omniserve_agent.http.account import Account, account_of
from omniserve_agent.http.attainment import Outcome
from omniserve_agent.http.errors import overloaded, translated, unavailable
from omniserve_agent.http.records import ClientGoneError
from omniserve_agent.http.state import STATE, State
from omniserve_agent.serving import ServedService


class Arrival:
    """One request. `submitted`: from then on its records tell how it ended."""

    def __init__(self, state: State, account: Account) -> None:
        self._state = state
        self._account = account
        self.received_s = state.clock()
        self.service: ServedService | None = None
        self.submitted = False
        self._counted = False

    @property
    def request_id(self) -> str:
        """Its `x-request-id`."""
        return self._account.request_id

    def body_read(self) -> None:
        """The request has been received in full: its time to first token begins."""
        self.received_s = self._state.clock()

    def admit(self, request: web.Request, model: str) -> ServedService:
        """The service behind `model`; ApiError if the caller may not use it, or not now. From here
        on the request counts as in flight."""
        state = self._state
        self.service = state.registry.served_as(model)
        self._account.model, self._account.service = model, self.service
        service = admitted(request, state.registry, model)
        if state.draining:
            raise unavailable("this server is shutting down; try again", 1.0, "shutting_down")
        if state.in_flight >= state.settings.max_requests:
            raise overloaded(
                f"{state.settings.max_requests} requests are in flight, the most allowed", 1.0
            )
        state.in_flight += 1
        self._counted = True
        return service

    def leave(self) -> None:
        """It is over: no longer in flight."""
        if self._counted:
            self._counted = False
            self._state.in_flight -= 1

    def ran(self, prompt_tokens: int, output_tokens: int, ttfts_ms: Sequence[float | None]) -> None:
        """Its choices have ended; their times to first token, None where there was none."""
        account = self._account
        account.prompt_tokens, account.output_tokens = prompt_tokens, output_tokens
        account.ttft_ms = min((t for t in ttfts_ms if t is not None), default=None)

    def ended_early(self, error: BaseException) -> None:
        """Count a request that was never submitted."""
        if self.service is None:
            self._state.metrics.caller_error()
        else:
            self._state.books.unsent(self.service, _outcome(error), self.received_s)


@contextmanager
def arriving(request: web.Request) -> Iterator[Arrival]:
    """Counts the request's end if that comes before its submission."""
    arrival = Arrival(request.app[STATE], account_of(request))
    try:
        yield arrival
    except BaseException as error:
        if not arrival.submitted:
            arrival.ended_early(error)
        raise
    finally:
        arrival.leave()


def _outcome(error: BaseException) -> Outcome:
    if not isinstance(error, Exception) or isinstance(error, ClientGoneError):
        return Outcome.CANCELLED
    if isinstance(error, web.HTTPException):
        return Outcome.CALLER_ERROR
    failure = translated(error)
    if failure.code == PAUSED_CODE:
        return Outcome.PAUSED
    if failure.status == 429:
        return Outcome.REFUSED
    return Outcome.FAILED if failure.status >= 500 else Outcome.CALLER_ERROR
