"""What clients saw of LS services' objectives, over their windows, read when scraped."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from omniserve_agent.http.records import Books, Clock
from omniserve_agent.http.registry import ServiceRegistry


@dataclass(eq=False)
class SloCollector(Collector):
    """By service: the burn of its error budget. `omniserve_engine_service_error_budget_burn_ratio`
    leaves out refused and failed requests, which margins cannot help; here they missed."""

    services: ServiceRegistry
    books: Books
    clock: Clock

    def collect(self) -> Iterator[Metric]:
        """One family."""
        burn = GaugeMetricFamily(
            "omniserve_slo_error_budget_burn_ratio",
            "Share of offered LS requests that missed, refused and failed ones included, over the "
            "share that may, over the service's window.",
            labels=["service", "class"],
        )
        now_s = self.clock()
        for service in self.services.services:
            if service.slo is not None:
                value = self.books.tally(service).error_budget_burn(service.slo, now_s)
                burn.add_metric([service.key, service.service_class.value], value)
        yield burn
