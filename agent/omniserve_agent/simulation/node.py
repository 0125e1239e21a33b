"""One engine in virtual time: carries plans out as the real loop does, with counts for contents.

The policies, the exhaustion rules, deadlines and output-length estimates are the engine's own; what
is modelled is the device (a latency model with noise), the hosts (`hosts.py`) and the rows between
them (`flights.py`). Not modelled: the copies between the tiers, which the engine makes in the
background. A prefix that is found costs neither time nor blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from omniserve_agent.scheduling.deadlines import Deadlines
from omniserve_agent.scheduling.exhaustion import Relief, Victim, victim
from omniserve_agent.scheduling.jobs import (
    DEVICE_STAGES,
    Job,
    JobIndex,
    ServiceClass,
    Stage,
    Tier,
    blocks_for,
)
from omniserve_agent.scheduling.latency import Work, pairs
from omniserve_agent.scheduling.lengths import OutputLengths
from omniserve_agent.scheduling.plan import STAGED_CHUNK_ROWS, Plan, Policy, Room
from omniserve_agent.simulation.flights import Flights
from omniserve_agent.simulation.hardware import BLOCK_TOKENS, Hardware
from omniserve_agent.simulation.hosts import Hosts
from omniserve_agent.simulation.workload import Arrival

LS, BE = ServiceClass.LS, ServiceClass.BE
STALL_S = 0.005  # an engine that can launch nothing looks again so much later


@dataclass(slots=True, eq=False)
class Run:
    """A request in the simulator."""

    job: Job
    arrival: Arrival
    host: int = 0
    staged_left: int = 0  # row-layers of its layer-major prefill still to compute
    first_token_s: float | None = None
    last_token_s: float = 0.0
    output_tokens: int = 0


@dataclass
class Node:
    """See the module. `ended` collects requests in the order of their end."""

    hardware: Hardware
    policy: Policy
    seed: int
    tokens_per_hop: float = 1.0  # drafts: expected tokens of a hop, right guesses included
    same_iteration_joins: bool = True
    slo: tuple[float, float] = (2.0, 0.2)  # TTFT, TPOT in seconds
    min_shares: Mapping[str, int] = field(default_factory=dict)  # percent promised to BE services
    now_s: float = 0.0
    iterations: int = 0
    busy_s: float = 0.0
    be_tokens: int = 0
    be_host_tokens: int = 0  # of `be_tokens`, by rows that the host attended for
    be_prefill_tokens: int = 0
    runs: dict[int, Run] = field(default_factory=dict)
    jobs: JobIndex = field(default_factory=JobIndex)
    ended: list[Run] = field(default_factory=list)
    lengths: OutputLengths = field(default_factory=OutputLengths)
    recomputed: int = 0
    _arrivals: int = 0

    def __post_init__(self) -> None:
        self.hosts = Hosts(self.hardware.hosts, self.hardware.model)
        self.flights = Flights(self.hardware.slots + 1, self.hardware.latency.layers, self.hosts)
        self.random = np.random.default_rng((self.seed, 3))
        self.device_free = self.hardware.device_blocks
        self.host_free = self.hardware.host_blocks
        self._host_load = [0] * len(self.hardware.hosts)

    # ---- requests --------------------------------------------------------------------------

    def job_for(self, arrival: Arrival) -> Job:
        """What the policies see of a request."""
        self._arrivals += 1
        expected = self.lengths.predict(arrival.service, 1024)
        most = arrival.prompt_tokens + arrival.output_tokens
        deadlines = None
        if arrival.service_class is LS:
            deadlines = Deadlines(arrival.arrival_s, *self.slo)
        return Job(
            handle=self._arrivals,
            service=arrival.service,
            service_class=arrival.service_class,
            priority=0,
            arrival=self._arrivals,
            tokens=arrival.prompt_tokens,
            max_total_tokens=most,
            predicted_tokens=arrival.prompt_tokens + expected,
            deadlines=deadlines,
            min_share_percent=self.min_shares.get(arrival.service, 0) if deadlines is None else 0,
        )

    def submit(self, arrival: Arrival) -> Run:
        """Take a request."""
        run = Run(self.job_for(arrival), arrival)
        self.runs[run.job.handle] = run
        self.jobs.add(run.job)
        self.policy.arrived(run.job)
        return run

    def withdraw(self, job: Job) -> Run:
        """A waiting request goes elsewhere."""
        self.jobs.move(job, Stage.DONE)
        return self.runs.pop(job.handle)

    # ---- one iteration ---------------------------------------------------------------------

    def step(self, next_arrival_s: float) -> tuple[Job, ...]:
        """One iteration; waiting requests that the policy gives to the CPU-only engine."""
        plan = self.policy.plan(self.jobs, self._room(), self.now_s)
        for move in plan.moves:
            self._move(move.job, move.to)
        for admission in plan.admissions:
            self._admit(admission.job, admission.tier)
        work, chunks = self._device_work(plan)
        self._enter(plan)
        finished, rows = self._staged_work(plan, work)
        if not (chunks or rows or self.flights.count):
            self.now_s = min(max(next_arrival_s, self.now_s + 1e-6), self.now_s + STALL_S)
            return plan.overflow
        self._pass(plan, work, chunks, finished, next_arrival_s)
        return plan.overflow

    def _room(self) -> Room:
        return Room(
            max(0, self.device_free),
            max(0, self.host_free),
            self.hardware.slots - self.flights.count,
        )

    def _pass(
        self,
        plan: Plan,
        work: Work,
        chunks: list[tuple[Job, int]],
        finished: list[Run],
        next_arrival_s: float,
    ) -> None:
        """Time passes; tokens come out."""
        has_ls = any(job.service_class is LS for job, _ in chunks)
        noise = float(np.exp(self.random.normal(0.0, self.hardware.noise)))
        if plan.waits_for_host:
            seconds, landed = self._waiting_pass(work, noise)
        elif plan.sweeps and not has_ls and len(chunks) <= self.flights.count:
            seconds, landed = self._sweep(plan, work, noise, next_arrival_s)
        else:
            seconds, landed = self._piggyback_pass(plan, work, noise)
        self.now_s += seconds
        self.busy_s += seconds
        self.iterations += 1
        self._deliver(chunks, finished, landed)

    def _piggyback_pass(self, plan: Plan, work: Work, noise: float) -> tuple[float, list[int]]:
        """Rows whose attention is back join; nobody waits."""
        latency = self.hardware.latency
        guess_s = latency.predict(work) * noise
        due = self.flights.due(self.now_s, guess_s, plan.join_rows)
        work.joined_rows = self.flights.joined(due).tolist()
        if latency.host:  # as the engine tells it
            step_bytes = self.jobs.offloaded_mean * self.hardware.model.kv_bytes / latency.layers
            work.host_kv_bytes = step_bytes * len(due)
        work.logit_rows += int(work.joined_rows[-1])
        seconds = latency.predict(work) * noise
        # Between a row's leaving and the pick of the same layer lies the device's attention.
        window_s = latency.key * work.device_keys if self.same_iteration_joins else 0.0
        landed = self.flights.advance(due, self.now_s, seconds, window_s)
        self._book_hops(landed, work)
        self.policy.observed(work, seconds)
        return seconds, landed

    def _sweep(
        self, plan: Plan, work: Work, noise: float, next_arrival_s: float
    ) -> tuple[float, list[int]]:
        """Without LS rows layers wait for the host; ends early when work comes in."""
        latency, lanes = self.hardware.latency, plan.join_rows
        dense_s = latency.dense.at(work.device_rows + min(lanes, self.flights.count)) * noise
        swept = self.flights.sweep(self.now_s, dense_s, next_arrival_s, lanes)
        # Layer-major prefill runs while the host attends.
        seconds = max(swept.seconds, latency.predict(work) * noise) + latency.fixed
        work.joined_rows, work.waited = swept.joined, True
        self._book_hops(swept.landed, work)
        self.policy.observed(work, seconds)
        return seconds, swept.landed

    def _waiting_pass(self, work: Work, noise: float) -> tuple[float, list[int]]:
        """At every layer the device waits for the host, then computes the offloaded rows'."""
        latency = self.hardware.latency
        host_s = self.flights.layer_s()
        device_s = latency.predict(work) / latency.layers * noise
        offloaded_s = latency.dense.at(self.flights.count)
        self.hosts.busy_s += host_s * latency.layers
        work.waited = True
        self.policy.observed(work, device_s * latency.layers)
        landed = self.flights.land_all()
        return latency.layers * (max(device_s, host_s) + offloaded_s), landed

    def _book(self, job: Job, work: Work, batch: int = 0, staged: int = 0) -> None:
        """Whose work it is, of BE services with a promised share."""
        if job.service_class is BE and job.service in self.jobs.promised:
            work.serve(job.service, batch, staged)

    def _book_hops(self, landed: list[int], work: Work) -> None:
        if self.jobs.promised:
            for handle in landed:
                self._book(self.runs[handle].job, work, batch=self.hardware.latency.layers)

    def _deliver(
        self, chunks: list[tuple[Job, int]], finished: list[Run], landed: list[int]
    ) -> None:
        for job, rows in chunks:
            job.computed += rows
            if job.computed == job.tokens:
                if job.stage is Stage.PREFILL:
                    self.jobs.move(job, Stage.DECODE)
                self._token(self.runs[job.handle], 1)
        for run in finished:
            run.job.computed = run.job.tokens
            self.jobs.move(run.job, Stage.BOUNDARY)
            self._token(run, 1)
        for handle in landed:
            run = self.runs[handle]
            self.jobs.move(run.job, Stage.BOUNDARY)
            left = run.job.max_total_tokens - run.job.tokens
            tokens = min(self._hop_tokens(), left)
            self.be_host_tokens += tokens
            run.job.computed += tokens
            self._token(run, tokens)

    def _hop_tokens(self) -> int:
        whole = int(self.tokens_per_hop)
        return whole + int(self.random.random() < self.tokens_per_hop - whole)

    def _token(self, run: Run, tokens: int) -> None:
        job = run.job
        job.tokens += tokens
        run.output_tokens += tokens
        run.last_token_s = self.now_s
        if run.first_token_s is None:
            run.first_token_s = self.now_s
        if job.deadlines is not None:
            job.deadlines.emitted(self.now_s, tokens)
        if job.service_class is BE:
            self.be_tokens += tokens
        if job.tokens >= job.max_total_tokens:
            self._release(job)
            self.jobs.move(job, Stage.DONE)
            self.lengths.observe(job.service, run.output_tokens)
            if job.deadlines is not None:
                attained = job.deadlines.attained(self.now_s)
                self.policy.judged(job.service, attained, self.now_s)
            self.ended.append(self.runs.pop(job.handle))

    # ---- plan to work ----------------------------------------------------------------------

    def _device_work(self, plan: Plan) -> tuple[Work, list[tuple[Job, int]]]:
        """Growth first: whoever gives way to a better-ranked row is not in the batch."""
        grown = []
        for chunk in plan.device:
            job = chunk.job
            if job.stage is Stage.DECODE:
                rows = 1
            elif job.stage is Stage.PREFILL:
                rows = min(chunk.rows, job.tokens - job.computed)
            else:
                continue
            tokens = job.computed + rows
            if rows <= 0:
                continue
            if tokens <= job.device_blocks * BLOCK_TOKENS or self._grow(Tier.DEVICE, job, tokens):
                grown.append((job, rows))
        chunks = [(job, rows) for job, rows in grown if job.stage in DEVICE_STAGES]
        work = Work(
            device_rows=sum([rows for _, rows in chunks]),
            logit_rows=sum([job.computed + rows == job.tokens for job, rows in chunks]),
            device_keys=sum([job.computed + 1 for job, rows in chunks if rows == 1]),
        )
        for job, rows in chunks:
            if self.jobs.promised:
                self._book(job, work, batch=rows * self.hardware.latency.layers)
            if rows > 1:
                work.device_pairs += pairs(job.computed, rows)
            if job.stage is Stage.PREFILL and job.service_class is BE:
                self.be_prefill_tokens += rows
        return work, chunks

    def _enter(self, plan: Plan) -> None:
        handles: list[int] = []
        hosts: list[int] = []
        tokens: list[int] = []
        for job in plan.entries:
            if job.stage is not Stage.BOUNDARY or self.flights.count + len(handles) >= (
                self.hardware.slots
            ):
                continue
            if self._grow(Tier.HOST, job, job.computed + 1):
                self.jobs.move(job, Stage.HOPPING)
                handles.append(job.handle)
                hosts.append(self.runs[job.handle].host)
                tokens.append(job.tokens)
        if handles:
            self.flights.enter(handles, hosts, tokens, self.now_s)

    def _staged_work(self, plan: Plan, work: Work) -> tuple[list[Run], int]:
        """Draw from the pool in the plan's order; prefills that end, and rows that ran."""
        pool, finished, drawn = plan.prefill_row_layers, [], 0
        layers = self.hardware.latency.layers
        for job in plan.staged:
            if job.stage is not Stage.STAGED or pool <= 0:
                continue
            run = self.runs[job.handle]
            rows = job.tokens - job.computed
            if run.staged_left == 0:
                if not self._grow(Tier.HOST, job, job.tokens + 1):
                    continue
                run.staged_left = rows * layers
            take = min(pool, run.staged_left)
            chunk = min(rows, STAGED_CHUNK_ROWS)
            work.chunk_rows += [chunk] * (take // chunk)
            if take % chunk:
                work.chunk_rows.append(take % chunk)
            work.staged_pairs += int(pairs(job.computed, rows) * layers * take / (rows * layers))
            self._book(job, work, staged=take)
            pool -= take
            drawn += take
            run.staged_left -= take
            if run.staged_left == 0:
                finished.append(run)
                work.logit_rows += 1
                self.be_prefill_tokens += rows
        return finished, drawn

    # ---- KV --------------------------------------------------------------------------------

    def _admit(self, job: Job, tier: Tier) -> None:
        if job.stage is Stage.SWAPPED:
            if self._grow(Tier.DEVICE, job, job.tokens + 1):
                self._drop(Tier.HOST, job)
                self._settle(Tier.DEVICE, job)
            return
        if job.stage is not Stage.WAITING:
            return
        if self._grow(tier, job, job.tokens + 1):
            job.computed = self.runs[job.handle].arrival.cached_tokens
            self._settle(tier, job)

    def _move(self, job: Job, to: Tier) -> None:
        if to is Tier.DEVICE and job.stage is Stage.BOUNDARY:
            if self._extend(Tier.DEVICE, job, job.computed + 1):
                self._settle(Tier.DEVICE, job)
        elif to is Tier.HOST and job.stage in DEVICE_STAGES:
            self._demote(job)

    def _demote(self, job: Job) -> None:
        if not self._grow(Tier.HOST, job, job.computed + 1):
            self._recompute(job)
            return
        self._drop(Tier.DEVICE, job)
        self._settle(Tier.HOST, job)

    def _grow(self, tier: Tier, job: Job, tokens: int) -> bool:
        while not self._extend(tier, job, tokens):
            chosen = victim(self.jobs, tier, job)
            if chosen is None or not self._relieve(chosen) or chosen.job is job:
                return False
        return True

    def _extend(self, tier: Tier, job: Job, tokens: int) -> bool:
        held = job.device_blocks if tier is Tier.DEVICE else job.host_blocks
        if tokens <= held * BLOCK_TOKENS:
            return True
        own = tokens - self.runs[job.handle].arrival.cached_tokens
        missing = max(0, blocks_for(own, BLOCK_TOKENS) - held)
        free = self.device_free if tier is Tier.DEVICE else self.host_free
        if missing > free:
            return False
        if tier is Tier.DEVICE:
            job.device_blocks += missing
            self.device_free -= missing
        else:
            if held == 0 and missing:
                self._choose_host(job)
            job.host_blocks += missing
            self.host_free -= missing
        return True

    def _choose_host(self, job: Job) -> None:
        """The host with the most free KV per read rate, so that all finish together."""
        pools = self.hardware.hosts
        run = self.runs[job.handle]
        run.host = min(
            range(len(pools)), key=lambda h: self._host_load[h] / pools[h].read_bytes_per_s
        )
        self._host_load[run.host] += job.predicted_tokens

    def _drop(self, tier: Tier, job: Job) -> None:
        if tier is Tier.DEVICE:
            self.device_free += job.device_blocks
            job.device_blocks = 0
        elif job.host_blocks:
            self.host_free += job.host_blocks
            job.host_blocks = 0
            self._host_load[self.runs[job.handle].host] -= job.predicted_tokens

    def _release(self, job: Job) -> None:
        self._drop(Tier.DEVICE, job)
        self._drop(Tier.HOST, job)

    def _recompute(self, job: Job) -> bool:
        self.recomputed += 1
        if job.stage is Stage.HOPPING:
            self.flights.leave({job.handle})
        self._release(job)
        self.runs[job.handle].staged_left = 0
        job.computed = 0
        self.jobs.move(job, Stage.WAITING)
        return True

    def _relieve(self, chosen: Victim) -> bool:
        job = chosen.job
        if chosen.relief is Relief.DEMOTE:
            self._demote(job)
        elif chosen.relief is Relief.DROP_COPY:
            self._drop(Tier.HOST, job)
        elif chosen.relief is Relief.SWAP:
            if not job.computed or not self._grow(Tier.HOST, job, job.computed):
                return self._recompute(job)
            self._drop(Tier.DEVICE, job)
            self.jobs.move(job, Stage.SWAPPED)
        else:
            return self._recompute(job)
        return True

    def _settle(self, tier: Tier, job: Job) -> None:
        at_end = job.remaining <= 1
        if tier is Tier.DEVICE:
            self._drop(Tier.HOST, job)
            stage = Stage.DECODE if at_end else Stage.PREFILL
        else:
            stage = Stage.BOUNDARY if at_end else Stage.STAGED
        self.runs[job.handle].staged_left = 0
        self.jobs.move(job, stage)
