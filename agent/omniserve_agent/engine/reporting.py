"""Figures of the engine for the API process: counters as they are, shares over an interval."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from omniserve_agent.engine.execution.iteration import ExchangeFigures
from omniserve_agent.engine.loop import Engine
from omniserve_agent.engine.messages import ServiceClass, ServiceFigures, Stats
from omniserve_agent.scheduling.ceiling import BeFlow, binding
from omniserve_agent.scheduling.jobs import DEVICE_STAGES, HOST_STAGES, Stage
from omniserve_agent.scheduling.plan import PolicyState

BE = ServiceClass.BE


@dataclass(frozen=True)
class _Mark:
    """Counters at the start of an interval."""

    at_s: float
    iterations: int
    be_output_tokens: int
    be_prefill_tokens: int
    hops: int
    accepted_drafts: int
    rejected_drafts: int
    lanes: int
    waited: int
    step_s: float
    exchange: ExchangeFigures


@dataclass(eq=False)
class Reporter:
    """Makes `Stats`. `now_s` is a monotonic time in seconds."""

    engine: Engine
    layers: int
    host_workers: int
    now_s: float
    _step_s: float = 0.0
    _mark: _Mark = field(init=False)

    def __post_init__(self) -> None:
        self._mark = self._take_mark(self.now_s)

    def stepped(self, seconds: float) -> None:
        """An iteration took this long; time in which nothing ran does not count."""
        self._step_s += seconds

    def report(self, now_s: float) -> Stats:
        """Figures since start, and over the interval since the last report."""
        before, self._mark = self._mark, self._take_mark(now_s)
        engine, figures = self.engine, self._mark.exchange
        counts, moves = engine.counts, engine.residency.counts
        flow = self._flow(before, self._mark)
        ceiling = binding(flow)
        engine.drafts.binds(ceiling)
        state = engine.policy.state or PolicyState()
        return Stats(
            services=self._services(),
            iterations=counts.iterations,
            sweeps=counts.sweeps,
            iteration_ms=1e3 * flow.iteration_s,
            rows_in_flight=engine.jobs.count(BE, Stage.HOPPING),
            offloaded_requests=engine.jobs.count(BE, *HOST_STAGES),
            device_resident_be_requests=engine.jobs.count(BE, *DEVICE_STAGES),
            joins=figures.joins,
            same_iteration_joins=figures.same_iteration_joins,
            stale_completions=figures.stale_completions,
            emulation_late_s=figures.emulation_late_s,
            host_attention_rows={ServiceClass.LS: 0, BE: figures.host_rows},
            device_attention_rows={
                name: rows * self.layers for name, rows in counts.device_rows.items()
            },
            host_workers_busy_share=flow.host_busy_share,
            host_kv_gbps=_rate(
                figures.kv_bytes - before.exchange.kv_bytes, self._mark.at_s - before.at_s
            )
            / 1e9,
            device_kv_blocks_used=engine.residency.device.pool.used_blocks,
            device_kv_blocks=engine.residency.device.pool.blocks,
            host_kv_blocks_used=engine.residency.host.pool.used_blocks,
            host_kv_blocks=engine.residency.host.pool.blocks,
            moves_to_host=moves.to_host,
            moves_to_device=moves.to_device,
            recomputed_requests=moves.recomputed,
            ls_swapped=moves.swapped,
            prefix_hit_tokens={
                "device": engine.residency.device.hit_tokens,
                "host": engine.residency.host.hit_tokens,
            },
            accepted_drafts=counts.accepted_drafts,
            rejected_drafts=counts.rejected_drafts,
            binding_ceiling=ceiling,
            be_tokens_per_s=flow.output_tokens_per_s,
            admission_refused=dict(engine.door.refused),
            admission_queued=engine.door.held,
            admitted_missed={name: count for name, count in engine.missed.items() if count},
            iteration_budget_ms=1e3 * state.budget_s,
            iteration_ls_ms=1e3 * state.ls_s,
            prediction_margin=state.margin,
            margin_quantile=state.quantile,
            margin_widening=state.widening,
            error_budget_slack_share=state.slack_share,
            error_budget_burn=state.burn,
            error_budget_burns=dict(state.burns),
            waits=engine.waits(),
        )

    def _take_mark(self, now_s: float) -> _Mark:
        engine = self.engine
        return _Mark(
            at_s=now_s,
            iterations=engine.counts.iterations,
            be_output_tokens=engine.counts.output_tokens[BE],
            be_prefill_tokens=engine.counts.be_prefill_tokens,
            hops=engine.counts.landed_hops,
            accepted_drafts=engine.counts.accepted_drafts,
            rejected_drafts=engine.counts.rejected_drafts,
            lanes=engine.counts.lanes,
            waited=engine.counts.waited,
            step_s=self._step_s,
            exchange=replace(engine.executor.figures()),
        )

    def _flow(self, before: _Mark, after: _Mark) -> BeFlow:
        seconds = after.at_s - before.at_s
        output = after.be_output_tokens - before.be_output_tokens
        iterations = after.iterations - before.iterations
        hops = after.hops - before.hops
        accepted = after.accepted_drafts - before.accepted_drafts
        rejected = after.rejected_drafts - before.rejected_drafts
        busy_ns = after.exchange.busy_ns - before.exchange.busy_ns
        jobs, totals = self.engine.jobs, self.engine.counts
        return BeFlow(
            rows_in_flight=jobs.count(BE, Stage.HOPPING),
            tokens_per_hop=1.0 + _rate(accepted, hops),
            rows_per_hop=1.0 + _rate(accepted + rejected, hops),
            layers=self.layers,
            iteration_s=_rate(after.step_s - before.step_s, iterations),
            waited_share=_rate(after.waited - before.waited, iterations),
            lanes=_rate(after.lanes - before.lanes, iterations),
            output_tokens_per_s=_rate(output, seconds),
            host_tokens_per_s=_rate(min(output, hops + accepted), seconds),
            host_busy_share=min(1.0, _rate(busy_ns / 1e9, seconds * self.host_workers)),
            prefill_tokens_per_s=_rate(after.be_prefill_tokens - before.be_prefill_tokens, seconds),
            output_per_prompt_token=_rate(
                totals.output_tokens[BE], max(1, totals.be_prefill_tokens)
            ),
            prefilling=jobs.count(BE, Stage.STAGED, Stage.PREFILL) > 0,
        )

    def _services(self) -> dict[str, ServiceFigures]:
        services = {
            name: ServiceFigures(
                finished=totals.finished,
                prompt_tokens=totals.prompt_tokens,
                cached_prompt_tokens=totals.cached_prompt_tokens,
                output_tokens=totals.output_tokens,
            )
            for name, totals in self.engine.services.items()
        }
        for request in self.engine.intake.requests.values():
            figures = services.setdefault(request.submit.service, ServiceFigures())
            if request.job.stage in (Stage.WAITING, Stage.SWAPPED):
                figures.waiting += 1
            else:
                figures.running += 1
        for name, count in self.engine.door.held_by_service().items():
            services.setdefault(name, ServiceFigures()).waiting += count
        return services


def _rate(amount: float, over: float) -> float:
    return amount / over if over > 0 else 0.0
