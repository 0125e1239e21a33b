"""The exchange's counters in the executor's words."""

from __future__ import annotations

from omniserve_agent.engine.execution.iteration import ExchangeFigures
from omniserve_native import Exchange


def exchange_figures(exchange: Exchange) -> ExchangeFigures:
    """Counters of an exchange and of its workers since start."""
    stats, workers = exchange.stats(), exchange.workers.stats()
    return ExchangeFigures(
        joins=stats.picked,
        joined_rows=stats.picked_rows,
        same_iteration_joins=stats.same_iteration,
        stale_completions=stats.stale,
        in_flight=stats.in_flight,
        busy_ns=workers.busy_ns,
        kv_bytes=workers.kv_bytes,
        host_rows=stats.picked_rows,
    )
