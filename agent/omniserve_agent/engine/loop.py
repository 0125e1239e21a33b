"""The engine's loop: plan, launch, deliver. One thread; no sockets, no torch, no clock decisions.

    submit / cancel ──► jobs ──policy──► plan ──► iteration ──executor──► outcome ──► token events

On CUDA the loop runs one iteration ahead: while iteration i runs, the results of i-1 are delivered
and i+1 is planned; chosen ids stay on the device as the next input, and a row found finished late
costs one discarded row. On the CPU device the same code runs with depth 0.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from omniserve_agent.engine.batch import BatchBuilder
from omniserve_agent.engine.door import Door
from omniserve_agent.engine.drafts import DraftSource, NoDrafts, accepted_length
from omniserve_agent.engine.execution.iteration import (
    Choice,
    Executor,
    Iteration,
    Launched,
    Outcome,
    StagedPrefill,
)
from omniserve_agent.engine.intake import WAITING_STAGES, Intake, IntakeLimits
from omniserve_agent.engine.kv.residency import Residency
from omniserve_agent.engine.kv.tables import KvTier
from omniserve_agent.engine.messages import (
    Refused,
    ServiceClass,
    Submit,
    TokenEvent,
    TokenLogprob,
)
from omniserve_agent.engine.requests import Request
from omniserve_agent.scheduling import explain
from omniserve_agent.scheduling.admission import Admission, Open
from omniserve_agent.scheduling.explain import Moment
from omniserve_agent.scheduling.jobs import JobIndex, Stage, Tier
from omniserve_agent.scheduling.latency import Work
from omniserve_agent.scheduling.lengths import OutputLengths
from omniserve_agent.scheduling.plan import Plan, Policy, Room
from omniserve_agent.scheduling.predictions import predict_again

WRITE_THROUGH_BLOCKS = 8  # per iteration: bounds how long a copy can hold up the loop


@dataclass
class LoopCounts:
    """Counters since start."""

    iterations: int = 0
    sweeps: int = 0
    waited: int = 0  # iterations that wait for the host at every layer
    late_rows: int = 0  # rows of requests found finished one iteration late
    device_rows: dict[ServiceClass, int] = field(  # attended on the device at every layer
        default_factory=lambda: dict.fromkeys(ServiceClass, 0)
    )
    output_tokens: dict[ServiceClass, int] = field(
        default_factory=lambda: dict.fromkeys(ServiceClass, 0)
    )
    be_prefill_tokens: int = 0
    lanes: int = 0  # that rows in flight could have, at each layer of an iteration
    landed_hops: int = 0
    accepted_drafts: int = 0
    rejected_drafts: int = 0


@dataclass
class ServiceTotals:
    """Counters of one service since start."""

    finished: int = 0
    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    output_tokens: int = 0


class Engine:
    """All services of one model on one device. See the module."""

    def __init__(
        self,
        policy: Policy,
        executor: Executor,
        device: KvTier,
        host: KvTier,
        limits: IntakeLimits,
        layers: int,
        drafts: DraftSource | None = None,
        clock: Callable[[], float] = time.monotonic,
        gate: Admission | None = None,
    ) -> None:
        self.policy = policy
        self._clock = clock
        self._collected_s = clock()
        self.layers = layers
        self.services: dict[str, ServiceTotals] = {}
        self.stalled = False  # the last step found requests but could launch nothing
        self.executor = executor
        self.jobs = JobIndex(device.block_tokens)
        self.lengths = OutputLengths()
        self.counts = LoopCounts()
        self.intake = Intake(
            limits,
            self.jobs,
            self.lengths,
            device.block_tokens,
            look_up=lambda r: self.residency.look_up(r),
        )
        self.door = Door(self.intake, gate or Open(), lambda r: self.policy.arrived(r.job))
        self.missed: Counter[str] = Counter()  # LS requests by service: taken, and too late
        self.residency = Residency(
            device, host, self.jobs, executor, self.intake.requests, self._abandon_prefill
        )
        self.drafts = drafts or NoDrafts()
        self._drafting = not isinstance(self.drafts, NoDrafts)
        self.batch = BatchBuilder(self.residency, executor, self.drafts)
        self._slots = limits.slots
        self._plan: Plan | None = None  # the last one
        self._turn = 0  # of the LS requests that wait: whose prefix was looked up last
        self._uncollected: deque[tuple[float, Launched]] = deque()
        self._first_events: list[TokenEvent] = []
        self._events: list[TokenEvent] = []

    # ---- what the process calls ------------------------------------------------------------

    def submit(self, submit: Submit) -> Refused | None:
        """Take a request, or say why not."""
        return self.door.submit(submit, self._clock())

    def cancel(self, request_id: str) -> None:
        """Forget a request; it leaves the plan with the next iteration."""
        request = self.intake.find(request_id)
        if request is not None:
            self._end(request)
        else:
            self.door.cancel(request_id)

    def judged(self, service: str, attained: bool) -> None:
        """An LS request kept its SLO or not, for the budgets and the figures."""
        self.missed[service] += not attained
        self.policy.judged(service, attained, self._clock())

    @property
    def idle(self) -> bool:
        """Whether a step would do nothing until a message comes."""
        waits = self._uncollected or self.residency.draining or self.door.held
        return not (self.intake.requests or waits)

    def step(self, interrupted: Callable[[], bool] = lambda: False) -> list[TokenEvent]:
        """Launch the next iteration and deliver the one that is due; its token events."""
        self.residency.reap()
        started_s = self._clock()
        self.door.step(started_s)
        self._look_up_waiting()
        begins_s = max(started_s, self._ends_s())
        self._plan = plan = self.policy.plan(self.jobs, self._room(), begins_s)
        iteration = self._carry_out(plan, interrupted)
        self.stalled = iteration is None
        if iteration is not None:
            launched = self._launch(iteration, plan)
            self._expect_deadlines(iteration, begins_s + self._expected_s(launched))
            self._uncollected.append((started_s, launched))
        keep = self.executor.depth if iteration is not None else 0
        while len(self._uncollected) > keep:
            self._deliver(*self._uncollected.popleft())
        self.residency.write_through(WRITE_THROUGH_BLOCKS)
        events, self._first_events, self._events = self._first_events + self._events, [], []
        return events

    def _look_up_waiting(self) -> None:
        """What LS requests that wait find on the device changes as others run. An iteration has
        time for two of them: the first in rank, and each in turn, since that may not be the first
        in the policy's order."""
        waiting = self.jobs.at(ServiceClass.LS, Stage.WAITING)
        if waiting:
            self._turn = (self._turn + 1) % len(waiting)
            for place in {0, self._turn}:
                self.residency.look_up(self.intake.requests[waiting[place].handle])

    def _launch(self, iteration: Iteration, plan: Plan) -> Launched:
        promised = bool(self.jobs.promised)
        drawing = iteration.staged if promised else ()
        left = [staged.row_layers_left(self.layers) for staged in drawing]
        launched = self.executor.launch(iteration)
        launched.work.lanes = plan.join_rows
        self.counts.lanes += plan.join_rows + plan.spare_lanes
        self._expect_reads(launched.work)
        if promised:
            self._book(iteration, left, launched.work)
        self._advance(iteration, launched)
        return launched

    def _ends_s(self) -> float:
        """When what is under way is expected to be done."""
        ends_s = self._collected_s
        for started_s, launched in self._uncollected:
            ends_s = max(ends_s, started_s) + self._expected_s(launched)
        return ends_s

    def _expected_s(self, launched: Launched) -> float:
        return self.policy.expects(launched.work) if self.executor.depth else 0.0

    def _expect_deadlines(self, iteration: Iteration, ends_s: float) -> None:
        """The next plan is made before these tokens are there, and is for those after them."""
        if not self.executor.depth:
            return
        for segment in iteration.segments:
            due = self.intake.requests[segment.handle].job.deadlines
            if due is not None and segment.sample is not None:
                due.launched(ends_s)

    def waits(self) -> dict[str, str]:
        """Per service, why its first waiting request waits."""
        return explain.waits(self._moment(), self.door.waits(self._clock()))

    def explain(self, request_ids: Sequence[str]) -> dict[str, str]:
        """What each of these waits for, empty: nothing; without those that are not here."""
        now = self._moment()
        found = self.door.why(request_ids, self._clock())
        for request_id in request_ids:
            request = self.intake.find(request_id)
            if request is not None:
                found[request_id] = explain.explain(now, request.job)
        return found

    def _moment(self) -> Moment:
        policy, jobs = self.policy, self.jobs
        return Moment(jobs, self._room(), policy.terms(jobs), policy.state, self._plan)

    # ---- plan to iteration -----------------------------------------------------------------

    def _room(self) -> Room:
        hopping, requests = self.jobs.at(ServiceClass.BE, Stage.HOPPING), self.intake.requests
        rows = [1 + len(requests[j.handle].draft) for j in hopping] if self._drafting else []
        return Room(
            device_free_blocks=self.residency.device.pool.free_blocks,
            host_free_blocks=self.residency.host.pool.free_blocks,
            free_slots=self._slots - len(hopping) - self.residency.draining,
            hop_rows=sum(rows),
            longest_hop=max(rows, default=1),
        )

    def _carry_out(self, plan: Plan, interrupted: Callable[[], bool]) -> Iteration | None:
        """Moves, admissions, then rows, in the plan's order."""
        requests = self.intake.requests
        for move in plan.moves:
            request = requests[move.job.handle]
            if move.to is Tier.DEVICE and move.job.stage is Stage.BOUNDARY:
                self.residency.promote(request)
            elif move.to is Tier.HOST and request.device is not None:
                self.residency.demote(request)
        for admission in plan.admissions:
            if admission.job.stage in WAITING_STAGES:
                request = requests[admission.job.handle]
                if self.residency.admit(request, admission.tier):
                    self.intake.begun(request, self._clock())
        number = self.counts.iterations
        return self.batch.build(number, plan, requests, self.jobs, interrupted)

    def _book(self, iteration: Iteration, left: Sequence[int], work: Work) -> None:
        """Whose work it is, of services with a promised share; `left`: of prefills, before it."""
        requests, promised = self.intake.requests, self.jobs.promised
        for segment in iteration.segments:
            job = requests[segment.handle].job
            if job.service in promised and job.service_class is ServiceClass.BE:
                work.serve(job.service, batch=len(segment.token_ids) * self.layers)
        for staged, before in zip(iteration.staged, left, strict=True):
            service = requests[staged.handle].job.service
            if service in promised:
                drawn = before - staged.row_layers_left(self.layers)
                work.serve(service, staged=drawn)

    def _book_hops(self, outcome: Outcome, work: Work) -> None:
        """The same of offloaded rows, once they are past the last layer."""
        for _, choices in outcome.hops:
            request = self.intake.requests.get(choices[0].handle)
            if request is not None and request.job.service in self.jobs.promised:
                work.serve(request.job.service, batch=len(choices) * self.layers)

    def _advance(self, iteration: Iteration, launched: Launched) -> None:
        """What is certain once an iteration is launched: counts, not tokens."""
        requests = self.intake.requests
        self.counts.iterations += 1
        self.counts.sweeps += not iteration.has_ls
        self.counts.waited += iteration.wait_ns > 0
        for segment in iteration.segments:
            request = requests[segment.handle]
            rows = len(segment.token_ids)
            self.counts.device_rows[segment.service_class] += rows
            if request.job.stage is Stage.PREFILL and segment.service_class is ServiceClass.BE:
                self.counts.be_prefill_tokens += rows
            request.job.computed += rows
            if segment.sample is not None:
                self._expect_token(request)
        for staged in launched.finished_prefills:
            request = requests[staged.handle]
            self.batch.staged.pop(staged.handle)
            self.counts.device_rows[ServiceClass.BE] += len(staged.token_ids)
            self.counts.be_prefill_tokens += len(staged.token_ids)
            request.job.computed += len(staged.token_ids)
            self._expect_token(request)

    def _expect_reads(self, work: Work) -> None:
        """Host KV that is read meanwhile, as plans reckon it: a mean row's for every join. What
        workers count (`ExchangeFigures.kv_bytes`) is no plan's to know, comes late and belongs to
        other iterations too; the joins were counted."""
        if not work.waited:
            step_bytes = self.jobs.offloaded_mean * self.residency.host.token_bytes / self.layers
            work.host_kv_bytes = step_bytes * sum(work.joined_rows)

    def _expect_token(self, request: Request) -> None:
        """One output token is on its way back."""
        request.pending += 1
        request.job.tokens += 1
        on_host = request.job.stage is Stage.STAGED
        request.job.held = on_host or request.waits
        if on_host:
            self.jobs.move(request.job, Stage.BOUNDARY)
        elif request.job.stage is Stage.PREFILL:
            self.jobs.move(request.job, Stage.DECODE)

    # ---- outcome to events -----------------------------------------------------------------

    def _deliver(self, started_s: float, launched: Launched) -> None:
        outcome = self.executor.collect(launched)
        begun_s, self._collected_s = max(started_s, self._collected_s), self._clock()
        seconds = self._collected_s - begun_s if launched.seconds is None else launched.seconds
        if self.jobs.promised:
            self._book_hops(outcome, launched.work)
        self.policy.observed(launched.work, seconds)
        for choice in outcome.segments:
            self._returned(choice)
        for choice in outcome.staged:
            self._returned(choice)
        for slot, choices in outcome.hops:
            self._landed(slot, choices)

    def _returned(self, choice: Choice) -> None:
        """A device row's or a prefill's token."""
        request = self.intake.requests.get(choice.handle)
        if request is None:
            self.counts.late_rows += 1
            return
        request.pending -= 1
        request.job.held = request.pending > 0 and (request.waits or request.device is None)
        self._append(request, [choice])

    def _landed(self, slot: int, choices: Sequence[Choice]) -> None:
        """An offloaded row has passed the last layer: keep the drafts that were right."""
        request = self.intake.requests.get(choices[0].handle)
        if request is None or request.slot != slot:
            self.counts.late_rows += 1
            return
        self.counts.landed_hops += 1
        kept = accepted_length(request.draft, [choice.token_id for choice in choices])
        self.counts.accepted_drafts += kept - 1
        self.counts.rejected_drafts += len(request.draft) - (kept - 1)
        if request.draft:
            self.drafts.judged(request.handle, len(request.draft), kept - 1)
        request.draft = []
        request.job.computed += kept
        request.job.tokens += kept
        self.batch.land(request)
        self.jobs.move(request.job, Stage.BOUNDARY)
        self._append(request, choices[:kept])

    def _append(self, request: Request, choices: Sequence[Choice]) -> None:
        """Known tokens go to the request and out; the first that ends it is the last."""
        taken: list[Choice] = []
        reason = None
        for choice in choices:
            request.tokens.append(choice.token_id)
            taken.append(choice)
            reason = self.intake.finish_reason(request)
            if reason is not None:
                break
        self._count_tokens(request, len(taken))
        if request.job.deadlines is not None:
            request.job.deadlines.emitted(self._collected_s, len(taken), request.pending)
        event = _event(request, taken, reason, self._collected_s)
        (self._first_events if event.first else self._events).append(event)
        request.cached_tokens = 0
        self.residency.register(request)
        if reason is not None:
            self._observe_length(request)
            self.services[request.submit.service].finished += 1
            self._judge(request)
            self._end(request)

    def _observe_length(self, request: Request) -> None:
        service = request.submit.service
        if self.lengths.observe(service, request.output_tokens):
            predict_again(self.jobs, service, self.lengths.expected(service))

    def _judge(self, request: Request) -> None:
        """By its own times, where nobody sees the request's tokens delivered."""
        due = request.job.deadlines
        if due is not None and not request.submit.sender_judges:
            self.judged(request.submit.service, due.attained(self._collected_s))

    def _count_tokens(self, request: Request, tokens: int) -> None:
        totals = self.services.setdefault(request.submit.service, ServiceTotals())
        if request.output_tokens - tokens == len(request.submit.emitted):
            totals.prompt_tokens += request.prompt_tokens
            totals.cached_prompt_tokens += request.cached_tokens or 0
        totals.output_tokens += tokens
        self.counts.output_tokens[request.job.service_class] += tokens

    def close(self) -> None:
        """Stop the executor's workers and free its memory."""
        self.executor.close()

    # ---- ends ------------------------------------------------------------------------------

    def _end(self, request: Request) -> None:
        self.residency.release(request)
        self.jobs.move(request.job, Stage.DONE)
        self.drafts.forget(request.handle)
        self.intake.forget(request)

    def _abandon_prefill(self, request: Request) -> None:
        staged: StagedPrefill | None = self.batch.staged.pop(request.handle, None)
        if staged is not None:
            self.executor.discard_prefill(staged)


def _event(
    request: Request, choices: Sequence[Choice], reason: str | None, chosen_s: float
) -> TokenEvent:
    wants = request.submit.sampling.logprobs is not None
    chosen = [c.logprob for c in choices if c.logprob is not None]
    top: list[list[TokenLogprob]] = [c.top_logprobs or [] for c in choices]
    return TokenEvent(
        request_id=request.submit.request_id,
        token_ids=[choice.token_id for choice in choices],
        logprobs=chosen if wants else None,
        top_logprobs=top if wants else None,
        finish_reason=reason,  # type: ignore[arg-type]
        cached_tokens=request.cached_tokens or 0,
        chosen_s=chosen_s,
        first=request.job.deadlines is not None and request.output_tokens == len(choices),
    )
