"""Prometheus metrics of the operator, `omniserve_operator_*`, base units."""

from __future__ import annotations

from collections import Counter as Tally

import prometheus_client as prometheus

from omniserve_operator.placement.result import Plan
from omniserve_operator.world import World


class Metrics:
    """One registry of its own: tests make several."""

    def __init__(self) -> None:
        self.registry = prometheus.CollectorRegistry()
        registry = self.registry
        self.passes = prometheus.Histogram(
            "omniserve_operator_reconcile_seconds",
            "Time of one reconcile pass",
            registry=registry,
            buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30),
        )
        self.failures = prometheus.Counter(
            "omniserve_operator_reconcile_failures_total",
            "Passes in which something could not be carried out",
            registry=registry,
        )
        self.writes = prometheus.Counter(
            "omniserve_operator_writes_total",
            "Calls that changed something on the API server",
            ["resource", "verb"],
            registry=registry,
        )
        self.conflicts = prometheus.Counter(
            "omniserve_operator_conflicts_total",
            "Writes that somebody else's newer version refused",
            ["resource"],
            registry=registry,
        )
        self.leader = prometheus.Gauge(
            "omniserve_operator_leader", "1 while this process holds the Lease", registry=registry
        )
        self.conditions = prometheus.Gauge(
            "omniserve_operator_services",
            "LLMServices by class and by what is said of them",
            ["service_class", "condition", "status"],
            registry=registry,
        )
        self.nodes = prometheus.Gauge(
            "omniserve_operator_nodes",
            "Nodes with an agent, by whether it reports",
            ["state"],
            registry=registry,
        )
        self.replicas = prometheus.Gauge(
            "omniserve_operator_replicas", "Replicas by phase", ["phase"], registry=registry
        )

    def observe(self, world: World, plan: Plan) -> None:
        """Gauges of what is so now."""
        self.conditions.clear()
        for (kind, condition, status), count in _conditions(world).items():
            self.conditions.labels(kind, condition, status).set(count)
        agents = [node for node in world.nodes if node.agent is not None]
        reporting = sum(node.reporting for node in agents)
        self.nodes.labels("reporting").set(reporting)
        self.nodes.labels("silent").set(len(agents) - reporting)
        self.replicas.clear()
        phases = Tally(r.phase for done in plan.services.values() for r in done.replicas)
        for phase, count in phases.items():
            self.replicas.labels(phase).set(count)


def _conditions(world: World) -> Tally[tuple[str, str, str]]:
    return Tally(
        (service.spec.service_class.value if service.spec else "unknown", c.type, str(c.status))
        for service in world.services
        for c in service.status.conditions
    )
