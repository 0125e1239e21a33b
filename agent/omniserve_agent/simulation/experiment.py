"""A run: a workload on a machine under a policy, and the figures that come out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from omniserve_agent.scheduling import policies
from omniserve_agent.scheduling.admission import AdmissionMode
from omniserve_agent.scheduling.ceiling import BeFlow, binding
from omniserve_agent.scheduling.held_back import HeldBack
from omniserve_agent.scheduling.jobs import Job, ServiceClass, Stage
from omniserve_agent.scheduling.omniserve import Omniserve
from omniserve_agent.scheduling.plan import Caps
from omniserve_agent.simulation.hardware import BLOCK_TOKENS, Hardware
from omniserve_agent.simulation.node import Node, Run
from omniserve_agent.simulation.overflow import CpuEngine
from omniserve_agent.simulation.workload import Arrival

LS, BE = ServiceClass.LS, ServiceClass.BE
Held = HeldBack[tuple[Arrival, Job]]
BACKLOG_REQUESTS = 12  # BE requests kept waiting, so that BE never runs dry
INT8_SAVES = 1.9  # two-byte KV over int8 with its scales


@dataclass(frozen=True, slots=True)
class Setting:
    """What is varied. Times in seconds."""

    policy: str = "omniserve"
    ttft_slo_s: float = 2.0
    tpot_slo_s: float = 0.2
    seconds: float = 300.0
    warm_up_s: float = 60.0
    seed: int = 0
    admission: AdmissionMode = AdmissionMode.OFF
    tokens_per_hop: float = 1.0
    sweeps: bool = True
    same_iteration_joins: bool = True
    layer_major: bool = True  # prompts may be computed for the host; else on the device only
    error_budget: bool = True
    be_device_residency: bool = True
    ls_prefill_rows: int = 2048
    be_prefill_rows: int = 2048
    int8_kv: bool = False
    overflow: bool = True  # whether `static_headroom` has its CPU-only engine
    be_open: int | None = None  # BE requests kept open at once; None: there are always more


@dataclass(frozen=True, slots=True)
class Figures:
    """One row of the result tables; names as in design.md, section 10."""

    policy: str
    offered: int
    attained_offered: float
    attained_finished: float
    refused_share: float
    ttft_ms_p50: float
    ttft_ms_p99: float
    tpot_ms_p50: float
    tpot_ms_p99: float
    be_tokens_per_s: float
    ceiling: str
    be_prefill_tokens_per_s: float = 0.0
    iteration_ms: float = 0.0
    rows_in_flight: float = 0.0
    host_busy_share: float = 0.0
    refused_would_attain: float | None = None
    admitted_missed: int = 0

    def row(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def caps_for(hardware: Hardware, setting: Setting) -> Caps:
    """The engine's limits as its flags would give them."""
    return Caps(
        layers=hardware.latency.layers,
        block_tokens=BLOCK_TOKENS,
        device_blocks=hardware.device_blocks,
        host_blocks=hardware.host_blocks,
        max_device_rows=hardware.max_device_rows,
        join_rows=hardware.join_rows,
        ls_prefill_rows=setting.ls_prefill_rows,
        be_prefill_rows=setting.be_prefill_rows,
        be_device_residency=setting.be_device_residency,
        be_host_admissions=setting.layer_major,
        sweeps=setting.sweeps,
    )


def machine_for(hardware: Hardware, setting: Setting) -> policies.Machine:
    """What policies and admission know of the engine."""
    return policies.Machine(
        caps=caps_for(hardware, setting),
        model=hardware.latency,
        host_bytes_per_s=hardware.host_bytes_per_s,
        kv_bytes=float(hardware.model.kv_bytes),
        overflow_jobs=4 * len(hardware.hosts) if setting.overflow else 0,
    )


def node_for(hardware: Hardware, setting: Setting) -> Node:
    """An engine under the setting's policy."""
    if setting.int8_kv:
        hosts = tuple(
            replace(
                h,
                read_bytes_per_s=INT8_SAVES * h.read_bytes_per_s,
                kv_bytes=INT8_SAVES * h.kv_bytes,
            )
            for h in hardware.hosts
        )
        latency = replace(hardware.latency, host=hardware.latency.host / INT8_SAVES)
        hardware = replace(hardware, hosts=hosts, latency=latency)
    policy = policies.make(setting.policy, machine_for(hardware, setting))
    if isinstance(policy, Omniserve):
        policy.error_budget.enabled = setting.error_budget
    return Node(
        hardware,
        policy,
        setting.seed,
        tokens_per_hop=setting.tokens_per_hop,
        same_iteration_joins=setting.same_iteration_joins,
        slo=(setting.ttft_slo_s, setting.tpot_slo_s),
    )


@dataclass
class Experiment:
    """Drives a node through a workload. LS arrivals in order; BE from a backlog without end, or
    from the same list where that holds BE."""

    hardware: Hardware
    setting: Setting
    arrivals: Sequence[Arrival]
    backlog: Iterator[Arrival] | None = None
    refused: list[Arrival] = field(default_factory=list)
    rows_seen: float = 0.0
    let_in: Arrival | None = None  # admitted whatever admission says
    let_in_attained: bool = False

    def run(self) -> Figures:
        """Until the setting's time is over."""
        setting, node = self.setting, node_for(self.hardware, self.setting)
        machine = machine_for(self.hardware, setting)
        gate = policies.gate_for(node.policy, machine, setting.admission)
        cpu = [CpuEngine(pool, self.hardware.model) for pool in self.hardware.hosts]
        pending = list(reversed(self.arrivals))
        held = Held(gate, lambda one: one[1])
        start = (0, 0, 0.0, 0, 0.0, 0)
        while node.now_s < setting.seconds:
            self._arrive(node, pending, held)
            if node.now_s < setting.warm_up_s:
                start = (
                    node.be_tokens,
                    node.be_prefill_tokens,
                    node.hosts.busy_s,
                    node.iterations,
                    sum(c.tokens for c in cpu),
                    node.be_host_tokens,
                )
                self.rows_seen = 0.0
            before_s = node.now_s
            overflow = node.step(pending[-1].arrival_s if pending else setting.seconds)
            self.rows_seen += node.flights.count * (node.now_s - before_s)
            if setting.policy.startswith("static_headroom") and setting.overflow:
                self._overflow(node, cpu, overflow, node.now_s - before_s)
        return self._figures(node, cpu, start, held)

    def _arrive(self, node: Node, pending: list[Arrival], held: Held) -> None:
        while pending and pending[-1].arrival_s <= node.now_s:
            self._offer(node, pending.pop(), held)
        for arrival, _ in held.ready(node.jobs, node.now_s):
            node.submit(arrival)
        if self.backlog is not None and self.setting.policy != "ls_alone":
            while self._wants_be(node):
                node.submit(next(self.backlog))

    def _wants_be(self, node: Node) -> bool:
        """A backlog without end, or a client that keeps so many requests open."""
        if self.setting.be_open is None:
            return node.jobs.count(BE, Stage.WAITING) < BACKLOG_REQUESTS
        ls = sum(node.jobs.count(LS, stage) for stage in Stage)
        return len(node.runs) - ls < self.setting.be_open

    def _offer(self, node: Node, arrival: Arrival, held: Held) -> None:
        if arrival.service_class is BE:
            node.submit(arrival)
            return
        new = (arrival, node.job_for(arrival))
        if arrival is self.let_in or held.judge(node.jobs, new, node.now_s).admitted:
            node.submit(arrival)
        elif held.gate.mode is AdmissionMode.QUEUE and held.alone(new, node.now_s).admitted:
            held.add(new)
        else:
            self.refused.append(arrival)

    def _overflow(
        self, node: Node, cpu: list[CpuEngine], given: Sequence[Any], seconds: float
    ) -> None:
        for engine in cpu:
            engine.advance(seconds)
        for job in given:
            free = max(cpu, key=lambda engine: engine.places)
            if free.places > 0:
                free.take(node.withdraw(job).arrival)

    # ---- figures ---------------------------------------------------------------------------

    def _figures(
        self,
        node: Node,
        cpu: list[CpuEngine],
        start: tuple[int, int, float, int, float, int],
        held: Held,
    ) -> Figures:
        setting = self.setting
        span_s = node.now_s - setting.warm_up_s
        due_before_s = node.now_s - setting.ttft_slo_s
        judged = [run for run in node.ended if run.job.service_class is LS]
        late = [
            r for r in node.runs.values() if r.job.service_class is LS and self._missed(r, node)
        ]
        judged = [r for r in judged if r.arrival.arrival_s >= setting.warm_up_s]
        late = [r for r in late if r.arrival.arrival_s >= setting.warm_up_s]
        refused = [a for a in self.refused if a.arrival_s >= setting.warm_up_s]
        overdue = [a for a, _ in held if setting.warm_up_s <= a.arrival_s < due_before_s]
        attained = sum(self._attains(run) for run in judged)
        self.let_in_attained = any(r.arrival is self.let_in and self._attains(r) for r in judged)
        missed = len(late) + len(overdue)
        offered = len(judged) + missed + len(refused)
        ttft = [_ttft(run) for run in judged] or [float("nan")]
        tpot = [_tpot(run) for run in judged if run.output_tokens > 1] or [float("nan")]
        cpu_tokens = sum(c.tokens for c in cpu) - start[4]
        be_tokens = node.be_tokens - start[0] + cpu_tokens
        prefill = node.be_prefill_tokens - start[1]
        iterations = max(1, node.iterations - start[3])
        busy = (node.hosts.busy_s - start[2]) / span_s / len(self.hardware.hosts)
        flow = BeFlow(
            rows_in_flight=self.rows_seen / span_s,
            tokens_per_hop=setting.tokens_per_hop,
            layers=self.hardware.latency.layers,
            iteration_s=span_s / iterations,
            join_rows=self.hardware.join_rows,
            output_tokens_per_s=be_tokens / span_s,
            host_tokens_per_s=(node.be_host_tokens - start[5] + cpu_tokens) / span_s,
            host_busy_share=min(1.0, busy),
            prefill_tokens_per_s=prefill / span_s,
            output_per_prompt_token=be_tokens / max(1, prefill),
            prefilling=node.jobs.count(BE, Stage.STAGED, Stage.PREFILL) > 0,
        )
        scale = 1e3
        return Figures(
            policy=setting.policy,
            offered=offered,
            attained_offered=attained / offered if offered else float("nan"),
            attained_finished=attained / len(judged) if judged else float("nan"),
            refused_share=len(refused) / offered if offered else 0.0,
            ttft_ms_p50=float(np.percentile(ttft, 50)) * scale,
            ttft_ms_p99=float(np.percentile(ttft, 99)) * scale,
            tpot_ms_p50=float(np.percentile(tpot, 50)) * scale,
            tpot_ms_p99=float(np.percentile(tpot, 99)) * scale,
            be_tokens_per_s=be_tokens / span_s * self.hardware.engines,
            ceiling=binding(flow),
            be_prefill_tokens_per_s=prefill / span_s * self.hardware.engines,
            iteration_ms=span_s / iterations * scale,
            rows_in_flight=flow.rows_in_flight,
            host_busy_share=busy,
            admitted_missed=len(judged) + missed - attained,
        )

    def _attains(self, run: Run) -> bool:
        good = _ttft(run) <= self.setting.ttft_slo_s
        return good and (run.output_tokens < 2 or _tpot(run) <= self.setting.tpot_slo_s)

    def _missed(self, run: Run, node: Node) -> bool:
        """Unfinished, and certain to miss."""
        if run.first_token_s is None:
            return node.now_s > run.arrival.arrival_s + self.setting.ttft_slo_s
        if _ttft(run) > self.setting.ttft_slo_s:
            return True
        most_s = (run.arrival.output_tokens - 1) * self.setting.tpot_slo_s
        return node.now_s > run.first_token_s + most_s


def _ttft(run: Run) -> float:
    first = run.first_token_s if run.first_token_s is not None else float("inf")
    return first - run.arrival.arrival_s


def _tpot(run: Run) -> float:
    first = run.first_token_s if run.first_token_s is not None else float("inf")
    return (run.last_token_s - first) / max(1, run.output_tokens - 1)
