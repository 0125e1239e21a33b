"""One engine in virtual time: carries plans out as the real loop does, with counts for contents.

The policies, the exhaustion rules, deadlines and output-length estimates are the engine's own; what
is modelled is the device (a latency model with noise), the hosts (`hosts.py`), the rows between
them (`flights.py`) and where KV lies (`residency.py`).

With depth 1 (the engine's on CUDA) an iteration is planned when the one before it begins: counts
advance as it is launched, its tokens come out at its end, and a row of a request that turns out to
have ended meanwhile is discarded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from omniserve_agent.scheduling.deadlines import Deadlines
from omniserve_agent.scheduling.jobs import (
    DEVICE_STAGES,
    Job,
    JobIndex,
    ServiceClass,
    Stage,
    Tier,
)
from omniserve_agent.scheduling.latency import Work, pairs
from omniserve_agent.scheduling.lengths import OutputLengths
from omniserve_agent.scheduling.plan import STAGED_CHUNK_ROWS, Plan, Policy, Room
from omniserve_agent.scheduling.predictions import predict_again, predicted_tokens
from omniserve_agent.simulation.counted import Counted
from omniserve_agent.simulation.flights import Flights
from omniserve_agent.simulation.guesses import Guesses, read_tokens
from omniserve_agent.simulation.hardware import BLOCK_TOKENS, Hardware
from omniserve_agent.simulation.hosts import Hosts
from omniserve_agent.simulation.residency import Residency
from omniserve_agent.simulation.runs import Run
from omniserve_agent.simulation.workload import Arrival

LS, BE = ServiceClass.LS, ServiceClass.BE
STALL_S = 0.005  # an engine that can launch nothing looks again so much later


@dataclass(slots=True)
class Launched:
    """An iteration that runs, or will once the one before it has ended."""

    plan: Plan
    work: Work
    sampled: list[Run]  # on the device: a token of each comes out
    finished: list[Run]  # prefills for the host: the same
    drawn: list[tuple[Run, float, float]]  # prompts for the host: tokens of KV to it, and from it
    entries: list[Run]  # rows that start a token at layer 0
    sweeps: bool
    step_bytes: float  # of host KV, read for a join
    copy_s: float  # before it, the device waits for copies


@dataclass
class Node:
    """See the module. `ended` collects requests in the order of their end."""

    hardware: Hardware
    policy: Policy
    seed: int
    guesses: Guesses = field(default_factory=Guesses)
    same_iteration_joins: bool = True
    depth: int = 0  # iterations launched ahead: 0 or 1
    slo: tuple[float, float] = (2.0, 0.2)  # TTFT, TPOT in seconds
    min_shares: Mapping[str, int] = field(default_factory=dict)  # percent promised to BE services
    now_s: float = 0.0
    counts: Counted = field(default_factory=Counted)
    runs: dict[int, Run] = field(default_factory=dict)
    jobs: JobIndex = field(default_factory=JobIndex)
    ended: list[Run] = field(default_factory=list)
    lengths: OutputLengths = field(default_factory=OutputLengths)
    _arrivals: int = 0
    _joined: list[float] = field(default_factory=list)  # at each layer, of the newest that is known
    _ahead: Launched | None = None

    def __post_init__(self) -> None:
        hardware = self.hardware
        self.hosts = Hosts(hardware.hosts, hardware.model, hardware.copy_bytes_per_s)
        self.flights = Flights(hardware.slots + 1, hardware.latency.layers, self.hosts)
        self.random = np.random.default_rng((self.seed, 3))
        self.kv = Residency(hardware, self.jobs, self.runs, self.flights)

    # ---- requests --------------------------------------------------------------------------

    def job_for(self, arrival: Arrival) -> Job:
        """What the policies see of a request."""
        self._arrivals += 1
        prompt, expected = arrival.prompt_tokens, self.lengths.expected(arrival.service)
        most = prompt + (arrival.max_tokens or arrival.output_tokens)
        deadlines = None
        if arrival.service_class is LS:
            deadlines = Deadlines(arrival.arrival_s, *self.slo)
        return Job(
            handle=self._arrivals,
            service=arrival.service,
            service_class=arrival.service_class,
            priority=0,
            arrival=self._arrivals,
            tokens=prompt,
            max_total_tokens=most,
            predicted_tokens=predicted_tokens(prompt, expected, prompt, most),
            deadlines=deadlines,
            prompt=arrival.prompt,
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
        """One iteration; waiting requests that the policy gives to the CPU-only engine.

        With depth 1 it is planned and launched, and the one before it runs: none at first.
        """
        self.kv.transfers.advance(self.now_s)
        begins_s = self.now_s + self._expected_s(self._ahead)
        plan = self.policy.plan(self.jobs, self._room(), begins_s)
        launched = self._launch(plan)
        due = launched
        if self.depth:
            self._expect_deadlines(launched, begins_s + self._expected_s(launched))
            due, self._ahead = self._ahead, launched
        if due is not None:
            self._pass(due, next_arrival_s)
            self._guess_on()
        elif launched is None:
            self.now_s = min(max(next_arrival_s, self.now_s + 1e-6), self.now_s + STALL_S)
            return plan.overflow
        self.kv.write_through(self.now_s)
        return plan.overflow

    def _expected_s(self, launched: Launched | None) -> float:
        return self.policy.expects(launched.work) if launched is not None and self.depth else 0.0

    def _expect_deadlines(self, launched: Launched | None, ends_s: float) -> None:
        """The next plan is made before these tokens are there, and is for those after them."""
        for run in launched.sampled if launched is not None else ():
            if run.job.deadlines is not None:
                run.job.deadlines.launched(ends_s)

    def _launch(self, plan: Plan) -> Launched | None:
        """Carry a plan out, up to what an iteration computes; None: nothing."""
        for move in plan.moves:
            self.kv.move(move.job, move.to)
        for admission in plan.admissions:
            self.kv.admit(admission.job, admission.tier)
        copy_s = self.kv.take_copy_s()
        work, chunks = self._device_work(plan)
        work.lanes, work.joined_rows = plan.join_rows, self._joined  # until it is known
        entries = self._entries(plan)
        finished, drawn = self._staged_work(plan, work)
        hopping, latency = self.jobs.count(BE, Stage.HOPPING), self.hardware.latency
        if not (chunks or drawn or hopping):
            return None
        has_ls = any(job.service_class is LS for job, _ in chunks)
        sweeps = plan.sweeps and not has_ls and len(chunks) <= hopping
        step_bytes = self.jobs.offloaded_mean * self.hardware.model.kv_bytes / latency.layers
        sampled = self._advance(chunks, finished)
        return Launched(plan, work, sampled, finished, drawn, entries, sweeps, step_bytes, copy_s)

    def _advance(self, chunks: list[tuple[Job, int]], finished: list[Run]) -> list[Run]:
        """What is certain once an iteration is launched: counts, not tokens. Who gets one."""
        sampled = []
        for job, rows in chunks:
            job.computed += rows
            if job.computed == job.tokens:
                if job.stage is Stage.PREFILL:
                    self.jobs.move(job, Stage.DECODE)
                sampled.append(self.runs[job.handle])
        for run in finished:
            run.job.computed = run.job.tokens
            self.jobs.move(run.job, Stage.BOUNDARY)
        for run in (*sampled, *finished):
            run.pending += 1
            run.job.tokens += 1
            run.job.held = run.held
        return sampled

    def _room(self) -> Room:
        guessing = self.guesses.longest > 0
        return Room(
            self.kv.device.free,
            self.kv.host.free,
            self.hardware.slots - self.jobs.count(BE, Stage.HOPPING),
            hop_rows=self.flights.rows if guessing else 0,
            longest_hop=self.flights.longest if guessing else 1,
        )

    def _pass(self, launched: Launched, next_arrival_s: float) -> None:
        """Time passes; tokens come out."""
        plan, work = launched.plan, launched.work
        self.now_s += launched.copy_s
        work.joined_rows = []
        self._stage(launched)
        self._enter(launched.entries)
        noise = float(np.exp(self.random.normal(0.0, self.hardware.noise)))
        if plan.waits_for_host:
            seconds, landed = self._waiting_pass(work, noise)
        elif launched.sweeps:
            seconds, landed = self._sweep(plan, work, noise, next_arrival_s)
        else:
            seconds, landed = self._piggyback_pass(launched, noise)
        self.now_s += seconds
        self.counts.busy_s += seconds
        self.counts.iterations += 1
        self.counts.waited += work.waited
        self.counts.lanes += plan.join_rows + plan.spare_lanes
        self._deliver(launched, landed)

    def _piggyback_pass(self, launched: Launched, noise: float) -> tuple[float, list[int]]:
        """Rows whose attention is back join; nobody waits."""
        latency, work = self.hardware.latency, launched.work
        guess_s = latency.predict(work) * noise
        due = self.flights.due(self.now_s, guess_s, launched.plan.join_rows)
        work.joined_rows = self._joined = self.flights.joined(due).tolist()
        if latency.host:  # as the engine tells it
            work.host_kv_bytes = launched.step_bytes * len(due)
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
        dense_s = latency.dense.at(work.device_rows + min(lanes, self.flights.rows)) * noise
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
        offloaded_s = latency.dense.at(self.flights.rows)
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

    def _deliver(self, launched: Launched, landed: list[int]) -> None:
        for run in (*launched.sampled, *launched.finished):
            job = run.job
            if job.stage is not Stage.DONE:
                run.pending -= 1
                job.held = run.held
                self._token(run, 1)
        for handle in landed:
            run = self.runs[handle]
            self.jobs.move(run.job, Stage.BOUNDARY)
            tokens = min(self._hop_tokens(run), run.arrival.output_tokens - run.output_tokens)
            self.counts.be_host_tokens += tokens
            run.job.computed += tokens
            run.job.tokens += tokens
            self._token(run, tokens)

    def _hop_tokens(self, run: Run) -> int:
        """Its row's, and those of the guesses that were right."""
        self.counts.hops += 1
        self.counts.guessed += run.guesses
        return 1 + self.guesses.right(run.guesses, self.random.random())

    def _guess_on(self) -> None:
        """From now on as many guesses a hop as pay under what binds BE."""
        if not self.guesses.due(self.now_s):
            return
        self.guesses.settle(
            self.now_s,
            self.counts,
            self.hosts.busy_s / len(self.hardware.hosts),
            self.hardware.latency.layers,
            self.flights.count,
            self.jobs.count(BE, Stage.STAGED, Stage.PREFILL) > 0,
        )

    def _token(self, run: Run, tokens: int) -> None:
        job = run.job
        run.output_tokens += tokens
        run.last_token_s = self.now_s
        if run.first_token_s is None:
            run.first_token_s = self.now_s
        if job.deadlines is not None:
            job.deadlines.emitted(self.now_s, tokens, run.pending)
        if job.service_class is BE:
            self.counts.be_tokens += tokens
        self.kv.published(job)
        if run.output_tokens >= run.arrival.output_tokens:
            self.kv.release(job)
            self.jobs.move(job, Stage.DONE)
            if self.lengths.observe(job.service, run.output_tokens):
                predict_again(self.jobs, job.service, self.lengths.expected(job.service))
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
            if job.held or job.stage not in DEVICE_STAGES:
                continue
            rows = min(chunk.rows, job.tokens - job.computed)
            tokens = job.computed + rows
            if rows <= 0:
                continue
            if tokens <= job.device_blocks * BLOCK_TOKENS or self.kv.grow(Tier.DEVICE, job, tokens):
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
                self.counts.be_prefill_tokens += rows
        return work, chunks

    def _entries(self, plan: Plan) -> list[Run]:
        """Rows that start a token, each in a slot."""
        found = []
        for job in plan.entries:
            free = self.jobs.count(BE, Stage.HOPPING) < self.hardware.slots
            if not free or job.stage is not Stage.BOUNDARY or job.held:
                continue
            if self.kv.grow(Tier.HOST, job, job.computed + 1):
                self.jobs.move(job, Stage.HOPPING)
                run = self.runs[job.handle]
                left = run.arrival.output_tokens - run.output_tokens
                run.guesses = max(0, min(self.guesses.length, plan.join_rows - 1, left - 1))
                found.append(run)
        return found

    def _enter(self, entries: list[Run]) -> None:
        """Those that did not have to give way since are on their way to the host."""
        runs = [run for run in entries if run.job.stage is Stage.HOPPING]
        if runs:
            self.flights.enter(
                [run.job.handle for run in runs],
                [run.host for run in runs],
                [read_tokens(run.job.tokens, run.guesses) for run in runs],
                [1 + run.guesses for run in runs],
                self.now_s,
            )

    def _staged_work(
        self, plan: Plan, work: Work
    ) -> tuple[list[Run], list[tuple[Run, float, float]]]:
        """Draw from the pool in the plan's order; prefills that end, and what was drawn."""
        pool, finished, drawn = plan.prefill_row_layers, [], []
        layers = self.hardware.latency.layers
        for job in plan.staged:
            run = self.runs[job.handle]
            if job.stage is not Stage.STAGED or pool <= 0 or not self._may_draw(run):
                continue
            rows = job.tokens - job.computed
            run.staged_left = run.staged_left or rows * layers
            take = min(pool, run.staged_left)
            self._draw(job, rows, take, work)
            drawn.append((run, take / layers, job.computed * take / (rows * layers)))
            pool -= take
            run.staged_left -= take
            if run.staged_left == 0:
                finished.append(run)
                work.logit_rows += 1
                self.counts.be_prefill_tokens += rows
        return finished, drawn

    def _may_draw(self, run: Run) -> bool:
        """Whether its token is known, its KV on the host has room, and the link to it too."""
        if run.held or self.kv.transfers.full(run):
            return False
        return run.staged_left > 0 or self.kv.grow(Tier.HOST, run.job, run.job.tokens + 1)

    def _draw(self, job: Job, rows: int, take: int, work: Work) -> None:
        """So many row-layers of a prompt of which `rows` tokens are still to compute."""
        chunk = min(rows, STAGED_CHUNK_ROWS)
        work.chunk_rows += [chunk] * (take // chunk)
        if take % chunk:
            work.chunk_rows.append(take % chunk)
        work.staged_pairs += int(pairs(job.computed, rows) * take / rows)
        self._book(job, work, staged=take)

    def _stage(self, launched: Launched) -> None:
        """KV of prompts for the host crosses while later layers are computed; what they found
        there comes. Their rows hop once all of it is across."""
        for run, stored, loaded in launched.drawn:
            if run.job.host_blocks:  # it has not given way since
                self.kv.transfers.store(run, stored)
                self.kv.transfers.load(run, loaded)
        for run in launched.finished:
            self.kv.transfers.wait_until_stored(run)
