"""A run: a workload on a machine under a policy, and the figures that come out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from omniserve_agent.scheduling import policies
from omniserve_agent.scheduling.admission import AdmissionMode
from omniserve_agent.scheduling.held_back import HeldBack
from omniserve_agent.scheduling.jobs import Job, ServiceClass, Stage
from omniserve_agent.scheduling.omniserve import Omniserve
from omniserve_agent.scheduling.plan import Caps
from omniserve_agent.simulation.counted import Counted
from omniserve_agent.simulation.figures import Figures, Seen, figures_of
from omniserve_agent.simulation.guesses import Guesses
from omniserve_agent.simulation.hardware import BLOCK_TOKENS, Hardware
from omniserve_agent.simulation.node import Node
from omniserve_agent.simulation.overflow import CpuEngine
from omniserve_agent.simulation.runs import Run
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
    drafts: int = 0  # guessed tokens that a hop verifies, at most
    acceptance: float = 0.5  # of a guess whose predecessors were right
    sweeps: bool = True
    same_iteration_joins: bool = True
    depth: int = 0  # iterations launched ahead; 1: as the engine on CUDA
    host_prompts: bool = True  # prompts may be computed for the host; else on the device only
    error_budget: bool = True
    be_device_residency: bool = True
    ls_prefill_rows: int = 2048
    be_prefill_rows: int = 2048
    int8_kv: bool = False
    overflow: bool = True  # whether `static_headroom` has its CPU-only engine
    to_the_end: bool = False  # LS requests that came in time are judged, however late they end
    be_open: int | None = None  # BE requests kept open at once; None: there are always more


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
        be_host_admissions=setting.host_prompts,
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
        hardware = _with_int8_kv(hardware)
    policy = policies.make(setting.policy, machine_for(hardware, setting))
    if isinstance(policy, Omniserve):
        policy.error_budget.enabled = setting.error_budget
    return Node(
        hardware,
        policy,
        setting.seed,
        guesses=Guesses(setting.drafts, setting.acceptance),
        same_iteration_joins=setting.same_iteration_joins,
        depth=setting.depth,
        slo=(setting.ttft_slo_s, setting.tpot_slo_s),
    )


def _with_int8_kv(hardware: Hardware) -> Hardware:
    """Hosts that hold and read more tokens in as many bytes."""
    hosts = tuple(
        replace(
            h,
            read_bytes_per_s=INT8_SAVES * h.read_bytes_per_s,
            kv_bytes=INT8_SAVES * h.kv_bytes,
        )
        for h in hardware.hosts
    )
    latency = replace(hardware.latency, host=hardware.latency.host / INT8_SAVES)
    return replace(hardware, hosts=hosts, latency=latency)


@dataclass(frozen=True, slots=True)
class _Mark:
    """Counters at a moment."""

    counts: Counted = field(default_factory=Counted)
    cpu_tokens: float = 0.0  # of CPU-only engines
    host_busy_s: float = 0.0
    row_seconds: float = 0.0


@dataclass
class Experiment:
    """Drives a node through a workload, once. LS arrivals in order; BE from a backlog without end,
    or from the same list where that holds BE."""

    hardware: Hardware
    setting: Setting
    arrivals: Sequence[Arrival]
    backlog: Iterator[Arrival] | None = None
    refused: list[Arrival] = field(default_factory=list)

    def __post_init__(self) -> None:
        setting, machine = self.setting, machine_for(self.hardware, self.setting)
        self._node = node_for(self.hardware, setting)
        self._gate = policies.gate_for(self._node.policy, machine, setting.admission)
        self._cpu = [CpuEngine(pool, self.hardware.model) for pool in self.hardware.hosts]
        self._overflows = setting.policy.startswith("static_headroom") and setting.overflow
        self._pending = list(reversed(self.arrivals))
        self._held: Held = HeldBack(self._gate, lambda one: one[1])
        self._row_seconds = 0.0
        self._let_in: Arrival | None = None
        self._let_in_run: Run | None = None

    def run(self) -> Figures:
        """Until the setting's time is over; of all engines, for which this one stands."""
        return self.figures([self.measure()])

    def figures(self, seen: Sequence[Seen]) -> Figures:
        """Of engines like this one."""
        setting, hardware = self.setting, self.hardware
        return figures_of(seen, hardware.latency.layers, setting.policy, hardware.engines)

    def measure(self) -> Seen:
        """Until the setting's time is over, and with `to_the_end` until each LS request that came
        by then has ended or is certain to miss."""
        setting, node = self.setting, self._node
        start = _Mark()
        while node.now_s < setting.seconds:
            if node.now_s < setting.warm_up_s:
                start = self._mark()
            self._turn()
        end, span_s = self._mark(), node.now_s - setting.warm_up_s
        while setting.to_the_end and self._undecided():
            self._turn()
        return self._seen(start, end, span_s)

    def run_until(self, at_s: float) -> None:
        """As `measure` goes on; a request that comes at `at_s` has not been judged yet."""
        while self._node.now_s < at_s:
            self._turn()

    def would_attain(self, arrival: Arrival) -> bool:
        """Admits this one, which is still to come, whatever admission says, and goes on until it
        has ended or is certain to miss."""
        self._let_in = arrival
        while (run := self._let_in_run) is None or not self._decided(run):
            self._turn()
        return run.job.stage is Stage.DONE and self._attains(run)

    def ls_output_tokens(self) -> int:
        """Of LS requests that ended after the warm-up, whenever they had come."""
        ended = [run for run in self._node.ended if run.job.service_class is LS]
        return sum(run.output_tokens for run in ended if self.setting.warm_up_s <= run.last_token_s)

    def _turn(self) -> None:
        node, pending = self._node, self._pending
        self._arrive()
        before_s = node.now_s
        overflow = node.step(pending[-1].arrival_s if pending else self.setting.seconds)
        self._row_seconds += node.flights.count * (node.now_s - before_s)
        if self._overflows:
            self._overflow(overflow, node.now_s - before_s)

    def _mark(self) -> _Mark:
        node = self._node
        cpu_tokens = sum(engine.tokens for engine in self._cpu)
        return _Mark(replace(node.counts), cpu_tokens, node.hosts.busy_s, self._row_seconds)

    def _undecided(self) -> bool:
        """Whether an LS request that came in time may still attain."""
        pending, node = self._pending, self._node
        if pending and pending[-1].arrival_s < self.setting.seconds:
            return True
        runs = [run for run in node.runs.values() if run.job.service_class is LS]
        return any(not self._missed(run) for run in runs) or any(
            not self._overdue(arrival) for arrival, _ in self._held
        )

    def _arrive(self) -> None:
        node, pending = self._node, self._pending
        while pending and pending[-1].arrival_s <= node.now_s:
            self._offer(pending.pop())
        for arrival, _ in self._held.ready(node.jobs, node.now_s):
            node.submit(arrival)
        if self.backlog is not None and self.setting.policy != "ls_alone":
            while self._wants_be():
                node.submit(next(self.backlog))

    def _wants_be(self) -> bool:
        """A backlog without end, or a client that keeps so many requests open."""
        node = self._node
        if self.setting.be_open is None:
            return node.jobs.count(BE, Stage.WAITING) < BACKLOG_REQUESTS
        ls = sum(node.jobs.count(LS, stage) for stage in Stage)
        return len(node.runs) - ls < self.setting.be_open

    def _offer(self, arrival: Arrival) -> None:
        node = self._node
        if arrival.service_class is BE:
            node.submit(arrival)
            return
        new = (arrival, node.job_for(arrival))
        if arrival is self._let_in:
            self._let_in_run = node.submit(arrival)
        elif self._held.judge(node.jobs, new, node.now_s).admitted:
            node.submit(arrival)
        elif self._gate.mode is AdmissionMode.QUEUE:
            self._held.add(new)
        else:
            self.refused.append(arrival)

    def _overflow(self, given: Sequence[Job], seconds: float) -> None:
        for engine in self._cpu:
            engine.advance(seconds)
        for job in given:
            free = max(self._cpu, key=lambda engine: engine.places)
            if free.places > 0:
                free.take(self._node.withdraw(job).arrival)

    # ---- figures ---------------------------------------------------------------------------

    def _seen(self, start: _Mark, end: _Mark, span_s: float) -> Seen:
        node, counts = self._node, self._counts
        ended = [run for run in node.ended if run.job.service_class is LS and counts(run.arrival)]
        open_runs = [run for run in node.runs.values() if run.job.service_class is LS]
        late = [run for run in open_runs if counts(run.arrival) and self._missed(run)]
        overdue = [a for a, _ in self._held if counts(a) and self._overdue(a)]
        before, done = start.counts, end.counts
        cpu_tokens = end.cpu_tokens - start.cpu_tokens
        hop_tokens = done.be_host_tokens - before.be_host_tokens
        return Seen(
            span_s=span_s,
            ttfts=[_ttft(run) for run in ended],
            tpots=[_tpot(run) for run in ended if run.output_tokens > 1],
            attained=sum(self._attains(run) for run in ended),
            missed=len(late) + len(overdue),
            refused=sum(counts(arrival) for arrival in self.refused),
            be_tokens=done.be_tokens - before.be_tokens + cpu_tokens,
            host_tokens=hop_tokens + cpu_tokens,
            be_prefill_tokens=done.be_prefill_tokens - before.be_prefill_tokens,
            iterations=done.iterations - before.iterations,
            waited=done.waited - before.waited,
            row_seconds=end.row_seconds - start.row_seconds,
            hops=done.hops - before.hops,
            hop_tokens=hop_tokens,
            guessed=done.guessed - before.guessed,
            lanes=done.lanes - before.lanes,
            host_busy_s=(end.host_busy_s - start.host_busy_s) / len(self.hardware.hosts),
            prefilling=node.jobs.count(BE, Stage.STAGED, Stage.PREFILL) > 0,
        )

    def _counts(self, arrival: Arrival) -> bool:
        return arrival.arrival_s >= self.setting.warm_up_s

    def _attains(self, run: Run) -> bool:
        good = _ttft(run) <= self.setting.ttft_slo_s
        return good and (run.output_tokens < 2 or _tpot(run) <= self.setting.tpot_slo_s)

    def _decided(self, run: Run) -> bool:
        return run.job.stage is Stage.DONE or self._missed(run)

    def _overdue(self, arrival: Arrival) -> bool:
        """Held back for longer than its TTFT."""
        return arrival.arrival_s < self._node.now_s - self.setting.ttft_slo_s

    def _missed(self, run: Run) -> bool:
        """Unfinished, and certain to miss."""
        now_s = self._node.now_s
        if run.first_token_s is None:
            return now_s > run.arrival.arrival_s + self.setting.ttft_slo_s
        if _ttft(run) > self.setting.ttft_slo_s:
            return True
        most_s = (run.arrival.output_tokens - 1) * self.setting.tpot_slo_s
        return now_s > run.first_token_s + most_s


def _ttft(run: Run) -> float:
    first = run.first_token_s if run.first_token_s is not None else float("inf")
    return first - run.arrival.arrival_s


def _tpot(run: Run) -> float:
    first = run.first_token_s if run.first_token_s is not None else float("inf")
    return (run.last_token_s - first) / max(1, run.output_tokens - 1)
