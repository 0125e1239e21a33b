"""Prometheus metrics, base units, one registry per server.

By service and class: `omniserve_requests_total` (by outcome), `omniserve_slo_offered_total`,
`omniserve_slo_attained_total`, `omniserve_slo_objective_ratio` and
`omniserve_slo_error_budget_burn_ratio` (see `slo_metrics`),
`omniserve_ttft_seconds`, `omniserve_tpot_seconds`, `omniserve_delivery_seconds`,
`omniserve_prompt_tokens_total`, `omniserve_cached_prompt_tokens_total`,
`omniserve_output_tokens_total`. By engine:
`omniserve_engine_*`, see `engine_metrics`.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.registry import Collector

from omniserve_agent.http.attainment import Observation, Outcome
from omniserve_agent.http.engine_metrics import EngineCollector
from omniserve_agent.http.registry import ServiceRegistry
from omniserve_agent.serving import ServedService

_TTFT_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 30, 60, 300)
_TPOT_BUCKETS = (0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.5, 1, 5)
_DELIVERY_BUCKETS = (0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5)
_LABELS = ("service", "class")


class Metrics:
    """Counters and histograms of requests; engine figures are read when scraped."""

    def __init__(self, services: ServiceRegistry) -> None:
        registry = CollectorRegistry()
        registry.register(EngineCollector(services))
        self._registry = registry
        self._services = services
        self._tokens: dict[tuple[str, str], tuple[Counter, ...]] = {}  # looked up once
        self._requests = Counter(
            "omniserve_requests",
            "Requests that ended, a choice each; outcome: finished, refused (capacity), failed "
            "(by us), cancelled, caller_error, paused. Service is empty if none was named.",
            (*_LABELS, "outcome"),
            registry=registry,
        )
        self._offered = self._counter(
            "slo_offered",
            "LS requests that count for attainment: finished, refused, failed, and cancelled "
            "after a deadline had passed.",
        )
        self._attained = self._counter(
            "slo_attained", "LS requests that finished within their service's TTFT and TPOT."
        )
        self._prompt = self._counter("prompt_tokens", "Prompt tokens of requests sent on.")
        self._cached = self._counter(
            "cached_prompt_tokens", "Prompt tokens found in a prefix cache."
        )
        self._output = self._counter("output_tokens", "Output tokens delivered.")
        self._ttft = self._histogram(
            "ttft_seconds",
            "From request received to first event written, of finished requests.",
            _TTFT_BUCKETS,
        )
        self._tpot = self._histogram(
            "tpot_seconds",
            "Mean time per output token after the first, of finished requests.",
            _TPOT_BUCKETS,
        )
        self._delivery = self._histogram(
            "delivery_seconds",
            "From the engine's choice of a first token to its event written, of LS requests.",
            _DELIVERY_BUCKETS,
        )

    def include(self, collector: Collector) -> None:
        """Figures that are read when scraped."""
        self._registry.register(collector)

    def text(self) -> bytes:
        """The exposition format, version 0.0.4."""
        self._begin()
        return generate_latest(self._registry)

    def _begin(self) -> None:
        """Counters of every service, at 0 if need be: rates see no rise to a counter's first value,
        and that may be the failure."""
        for service in self._services.services:
            labels = (service.key, service.service_class.value)
            for outcome in Outcome:
                self._requests.labels(*labels, outcome.value)
            if service.slo is not None:
                self._offered.labels(*labels)
                self._attained.labels(*labels)

    def caller_error(self) -> None:
        """A request that named no service, or none that could be read."""
        self._requests.labels("", "", "caller_error").inc()

    def ended(
        self, service: ServedService, seen: Observation, offered: bool, attained: bool
    ) -> None:
        """A request ended."""
        labels = (service.key, service.service_class.value)
        self._requests.labels(*labels, seen.outcome.value).inc()
        if service.slo is not None:
            self._offered.labels(*labels).inc(offered)
            self._attained.labels(*labels).inc(attained)
        if seen.outcome == "finished":
            if seen.ttft_ms is not None:
                self._ttft.labels(*labels).observe(seen.ttft_ms / 1e3)
            if seen.tpot_ms is not None:
                self._tpot.labels(*labels).observe(seen.tpot_ms / 1e3)

    def delivered(self, service: ServedService, seconds: float) -> None:
        """A first token was written so long after it was chosen."""
        labels = (service.key, service.service_class.value)
        self._delivery.labels(*labels).observe(max(0.0, seconds))

    def tokens(
        self, service: ServedService, *, prompt: int = 0, cached: int = 0, output: int = 0
    ) -> None:
        """Tokens of a request."""
        labels = (service.key, service.service_class.value)
        if labels not in self._tokens:
            counters = (self._prompt, self._cached, self._output)
            self._tokens[labels] = tuple(counter.labels(*labels) for counter in counters)
        for counter, count in zip(self._tokens[labels], (prompt, cached, output), strict=True):
            if count:
                counter.inc(count)

    def _counter(self, name: str, help_text: str) -> Counter:
        return Counter(f"omniserve_{name}", help_text, _LABELS, registry=self._registry)

    def _histogram(self, name: str, help_text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(
            f"omniserve_{name}", help_text, _LABELS, buckets=buckets, registry=self._registry
        )
