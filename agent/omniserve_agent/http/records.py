"""Times of each request, told once to the service's tally and to the metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from omniserve_agent.engine.messages import ServiceClass
from omniserve_agent.http.attainment import Observation, Outcome
from omniserve_agent.http.delivery import Deliveries
from omniserve_agent.http.metrics import Metrics
from omniserve_agent.http.registry import ServiceRegistry
from omniserve_agent.http.tally import Tally
from omniserve_agent.serving import FOR_CAPACITY, RequestRefusedError, ServedService

DELIVERED = (Outcome.FINISHED, Outcome.CANCELLED)  # as far as the client wanted it
Clock = Callable[[], float]


class ClientGoneError(Exception):
    """The client closed the connection, or stopped reading."""


class Books:
    """A tally per service, and how long deliveries take. A class change begins a new tally, as the
    figures mean something else, and so does another object of the same name."""

    def __init__(self, registry: ServiceRegistry, metrics: Metrics, clock: Clock) -> None:
        self._registry = registry
        self.metrics = metrics
        self.clock = clock
        self._started_s = clock()
        self.deliveries = Deliveries()
        self._tallies: dict[str, tuple[tuple[ServiceClass, str], Tally]] = {}

    def tally(self, service: ServedService) -> Tally:
        """The service's tally."""
        known, kind = self._tallies.get(service.key), (service.service_class, service.uid)
        if known is None or known[0] != kind:
            started_s = self._started_s if known is None else self.clock()
            known = (kind, Tally(started_s))
            self._forget_removed()
            self._tallies[service.key] = known
        return known[1]

    def delivered(self, service: ServedService, seconds: float) -> None:
        """A first token of an LS service took so long from the engine's choice to its write."""
        self.deliveries.delivered(seconds)
        self.metrics.delivered(service, seconds)

    def _forget_removed(self) -> None:
        keys = {service.key for service in self._registry.services}
        self._tallies = {key: entry for key, entry in self._tallies.items() if key in keys}

    def open(self, service: ServedService, received_s: float, prompt_tokens: int) -> Record:
        """A record of one request that is about to be sent to the engine."""
        self.metrics.tokens(service, prompt=prompt_tokens)
        return Record(service, self, received_s)

    def unsent(self, service: ServedService, outcome: Outcome, received_s: float) -> None:
        """A request that never reached the engine."""
        Record(service, self, received_s).end(outcome)


class Record:
    """One request from submission to its end."""

    def __init__(self, service: ServedService, books: Books, received_s: float) -> None:
        self._service = service
        self._books = books
        self._tally = books.tally(service)
        self._received_s = received_s
        self._first_s: float | None = None
        self._last_s: float | None = None
        self._output_tokens = 0
        self._ended = False
        self._tally.waiting += 1

    @property
    def ttft_ms(self) -> float | None:
        """Time to first token, or None before it."""
        return None if self._first_s is None else (self._first_s - self._received_s) * 1e3

    def wrote(self, tokens: int, cached_tokens: int = 0, chosen_s: float | None = None) -> None:
        """An event that carried so many output tokens has been written."""
        if tokens == 0:
            return
        now_s = self._books.clock()
        if self._first_s is None:
            self._first_s = now_s
            self._tally.waiting -= 1
            self._tally.running += 1
            if self._service.slo is not None and chosen_s is not None:
                self._books.delivered(self._service, now_s - chosen_s)
        self._last_s = now_s
        self._output_tokens += tokens
        self._tally.add_tokens(tokens, now_s)
        self._books.metrics.tokens(self._service, output=tokens, cached=cached_tokens)

    def end(self, outcome: Outcome) -> None:
        """The request is over; later calls change nothing."""
        if self._ended:
            return
        self._ended = True
        if self._first_s is None:
            self._tally.waiting -= 1
        else:
            self._tally.running -= 1
        seen = Observation(
            outcome,
            self._received_s,
            self._books.clock(),
            self._first_s,
            self._last_s,
            self._output_tokens,
        )
        offered, attained = self._tally.add(seen, self._service.slo)
        self._books.metrics.ended(self._service, seen, offered, attained)
        if offered and self._service.slo is not None and outcome in DELIVERED:
            self._service.backend.judged(self._service.key, attained)


@contextmanager
def recorded(records: Sequence[Record]) -> Iterator[None]:
    """Ends every record that is still open with what the block's exception means."""
    try:
        yield
    except BaseException as error:
        for record in records:
            record.end(_outcome(error))
        raise


def _outcome(error: BaseException) -> Outcome:
    if isinstance(error, RequestRefusedError):
        return Outcome.REFUSED if error.reason in FOR_CAPACITY else Outcome.CALLER_ERROR
    if isinstance(error, Exception) and not isinstance(error, ClientGoneError):
        return Outcome.FAILED
    return Outcome.CANCELLED
