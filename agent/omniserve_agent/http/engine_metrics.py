"""The engines' `Stats` as metrics. Counters begin at zero again when an engine is restarted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from omniserve_agent.engine.messages import Stats
from omniserve_agent.http.registry import ServiceRegistry

CEILINGS = ("none", "iterations", "host_bandwidth", "dense_rows", "prefill", "device")


@dataclass(frozen=True)
class _Series:
    """`values`: label value → number; the label value is empty for an unlabelled series."""

    name: str
    help_text: str
    values: Callable[[Stats], dict[str, float]]
    label: str = ""
    is_counter: bool = True


def _one(read: Callable[[Stats], float]) -> Callable[[Stats], dict[str, float]]:
    return lambda stats: {"": read(stats)}


_SERIES = (
    _Series("iterations", "Iterations of the layer loop.", _one(lambda s: s.iterations)),
    _Series("sweeps", "Passes over layers that held no LS row.", _one(lambda s: s.sweeps)),
    _Series(
        "iteration_seconds",
        "Mean length of an iteration over the last reporting interval.",
        _one(lambda s: s.iteration_ms / 1e3),
        is_counter=False,
    ),
    _Series(
        "rows_in_flight",
        "Offloaded rows between token boundaries.",
        _one(lambda s: s.rows_in_flight),
        is_counter=False,
    ),
    _Series(
        "be_requests",
        "BE requests by where their KV is.",
        lambda s: {"host": s.offloaded_requests, "device": s.device_resident_be_requests},
        label="tier",
        is_counter=False,
    ),
    _Series("joins", "Hops that rejoined the batch.", _one(lambda s: s.joins)),
    _Series(
        "same_iteration_joins",
        "Hops that rejoined in the iteration that submitted them.",
        _one(lambda s: s.same_iteration_joins),
    ),
    _Series(
        "stale_completions",
        "Completions dropped because their request was gone.",
        _one(lambda s: s.stale_completions),
    ),
    _Series(
        "host_attention_rows",
        "Row-layers attended on the host, by class.",
        lambda s: {key.value: count for key, count in s.host_attention_rows.items()},
        label="class",
    ),
    _Series(
        "device_attention_rows",
        "Row-layers attended on the device, by class.",
        lambda s: {key.value: count for key, count in s.device_attention_rows.items()},
        label="class",
    ),
    _Series(
        "host_workers_busy_ratio",
        "Share of the host workers' time spent in attention, last reporting interval.",
        _one(lambda s: s.host_workers_busy_share),
        is_counter=False,
    ),
    _Series(
        "host_kv_bytes_per_second",
        "KV bytes that host attention read per second, last reporting interval.",
        _one(lambda s: s.host_kv_gbps * 1e9),
        is_counter=False,
    ),
    _Series(
        "kv_blocks_used",
        "KV blocks in use, by tier.",
        lambda s: {"device": s.device_kv_blocks_used, "host": s.host_kv_blocks_used},
        label="tier",
        is_counter=False,
    ),
    _Series(
        "kv_blocks",
        "KV blocks there are, by tier.",
        lambda s: {"device": s.device_kv_blocks, "host": s.host_kv_blocks},
        label="tier",
        is_counter=False,
    ),
    _Series(
        "moves",
        "Whole requests moved between the tiers, by destination.",
        lambda s: {"host": s.moves_to_host, "device": s.moves_to_device},
        label="to",
    ),
    _Series(
        "recomputed_requests",
        "Requests preempted without a place to keep their KV.",
        _one(lambda s: s.recomputed_requests),
    ),
    _Series("ls_swapped", "LS requests swapped out.", _one(lambda s: s.ls_swapped)),
    _Series(
        "prefix_hit_tokens",
        "Prompt tokens found in the prefix cache, by tier.",
        lambda s: dict(s.prefix_hit_tokens),
        label="tier",
    ),
    _Series(
        "draft_tokens",
        "Guessed tokens that offloaded rows carried, by what became of them.",
        lambda s: {"accepted": s.accepted_drafts, "rejected": s.rejected_drafts},
        label="outcome",
    ),
    _Series(
        "be_tokens_per_second",
        "BE output tokens per second, last reporting interval.",
        _one(lambda s: s.be_tokens_per_s),
        is_counter=False,
    ),
    _Series(
        "admission_refused_requests",
        "LS requests refused because they were predicted to miss, by service.",
        lambda s: dict(s.admission_refused),
        label="service",
    ),
    _Series(
        "admission_queued_requests",
        "LS requests held back now.",
        _one(lambda s: s.admission_queued),
        is_counter=False,
    ),
    _Series(
        "admitted_missed_requests",
        "LS requests that were taken and missed their SLO, by service.",
        lambda s: dict(s.admitted_missed),
        label="service",
    ),
    _Series(
        "iteration_budget_seconds",
        "What the last planned iteration might take under the LS deadlines.",
        _one(lambda s: s.iteration_budget_ms / 1e3),
        is_counter=False,
    ),
    _Series(
        "iteration_ls_seconds",
        "What LS was predicted to take of it.",
        _one(lambda s: s.iteration_ls_ms / 1e3),
        is_counter=False,
    ),
    _Series(
        "prediction_margin_ratio",
        "Planned over predicted iteration time.",
        _one(lambda s: s.prediction_margin),
        is_counter=False,
    ),
    _Series(
        "margin_quantile",
        "Quantile of prediction residuals the margin is taken at.",
        _one(lambda s: s.margin_quantile),
        is_counter=False,
    ),
    _Series(
        "margin_widening_ratio",
        "What the error budgets multiply the margin by; 1 while next to nothing is burnt.",
        _one(lambda s: s.margin_widening),
        is_counter=False,
    ),
    _Series(
        "error_budget_slack_ratio",
        "Share of the slack of LS that the error budgets let BE prompts take.",
        _one(lambda s: s.error_budget_slack_share),
        is_counter=False,
    ),
    _Series(
        "error_budget_burn_ratio",
        "Share of LS requests that missed over the share that may: the highest of all services.",
        _one(lambda s: s.error_budget_burn),
        is_counter=False,
    ),
    _Series(
        "service_error_budget_burn_ratio",
        "Share of LS requests that missed over the share that may, by service.",
        lambda s: dict(s.error_budget_burns),
        label="service",
        is_counter=False,
    ),
    _Series(
        "binding_ceiling",
        "1 for what limits BE throughput now.",
        lambda s: dict.fromkeys(CEILINGS, 0.0) | {s.binding_ceiling: 1.0},
        label="ceiling",
        is_counter=False,
    ),
)


class EngineCollector(Collector):
    """Reads the registry's engines at every scrape; an engine without figures shows none."""

    def __init__(self, services: ServiceRegistry) -> None:
        self._services = services

    def collect(self) -> Iterator[Metric]:
        """Metric families of all engines."""
        yield from self._states()
        for series in _SERIES:
            yield self._family(series)

    def _states(self) -> Iterator[Metric]:
        ready = GaugeMetricFamily(
            "omniserve_engine_ready", "1 while the engine takes requests.", labels=["engine"]
        )
        restarts = CounterMetricFamily(
            "omniserve_engine_restarts", "Times the engine was started again.", labels=["engine"]
        )
        device = GaugeMetricFamily(
            "omniserve_engine_device",
            "1 for the device an engine runs on; emulated:PROFILE is an emulated device.",
            labels=["engine", "device"],
        )
        for name, backend in self._services.engines:
            ready.add_metric([name], float(backend.ready is not None))
            restarts.add_metric([name], backend.restarts)
            if backend.ready is not None:
                device.add_metric([name, backend.ready.device], 1.0)
        yield ready
        yield restarts
        yield device

    def _family(self, series: _Series) -> Metric:
        kind = CounterMetricFamily if series.is_counter else GaugeMetricFamily
        labels = ["engine", series.label] if series.label else ["engine"]
        family = kind(f"omniserve_engine_{series.name}", series.help_text, labels=labels)
        for name, backend in self._services.engines:
            if backend.stats is None:
                continue
            for label, value in series.values(backend.stats).items():
                family.add_metric([name, label] if series.label else [name], value)
        return family
