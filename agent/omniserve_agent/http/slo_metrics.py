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
    """By service: its objective, and the burn of its error budget.

    `omniserve_engine_service_error_budget_burn_ratio` leaves out refused and failed requests, which
    margins cannot help; here they missed."""

    services: ServiceRegistry
    books: Books
    clock: Clock

    def collect(self) -> Iterator[Metric]:
        """Two families."""
        objective = GaugeMetricFamily(
            "omniserve_slo_objective_ratio",
            "Share of offered LS requests that shall attain: spec.slo.objectivePercent.",
            labels=["service", "class"],
        )
        burn = GaugeMetricFamily(
            "omniserve_slo_error_budget_burn_ratio",
            "Share of offered LS requests that missed, refused and failed ones included, over the "
            "share that may, over the service's window.",
            labels=["service", "class"],
        )
        now_s = self.clock()
        for service in self.services.services:
            if service.slo is not None:
                names = [service.key, service.service_class.value]
                objective.add_metric(names, service.slo.objective_percent / 100)
                value = self.books.tally(service).error_budget_burn(service.slo, now_s)
                burn.add_metric(names, value)
        yield objective
        yield burn
