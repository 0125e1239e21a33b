"""`synchronous_offload`: attention of some requests on the host, and the device waits (NEO's way).

Two sub-batches run against each other: while the host attends the offloaded rows of a layer, the
device computes the others' layer; then it waits for the host and computes that layer for the
offloaded rows, in dense calls of their own (Jiang et al., MLSys 2025). An offloaded row yields a
token per iteration. As in NEO the number of offloaded rows is the most whose host attention is
predicted to fit under the other sub-batch's time, and they are left out where the iteration without
them is predicted to yield more. First come, first served. Prompts come in chunks within the same
token budget that other policies have; how long the device waits knows no SLO.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from omniserve_agent.scheduling.fixed_caps import FixedCaps
from omniserve_agent.scheduling.jobs import Job, JobIndex, ServiceClass, Stage
from omniserve_agent.scheduling.latency import Correction, LatencyModel, Work
from omniserve_agent.scheduling.plan import Caps, Plan, Room, Terms, Unlearning
from omniserve_agent.scheduling.token_budget import MIN_TOKENS, TokenBudget

LS, BE = ServiceClass.LS, ServiceClass.BE
PROMPTS = (Stage.WAITING, Stage.PREFILL, Stage.STAGED)


@dataclass
class SynchronousOffload(Unlearning):
    """`host_bytes_per_s`: what the host's attention reads; `kv_bytes`: of one token, all layers."""

    caps: Caps
    model: LatencyModel
    host_bytes_per_s: float
    kv_bytes: float
    correction: Correction = field(default_factory=Correction)
    budget: TokenBudget = field(init=False)

    def __post_init__(self) -> None:
        self.budget = TokenBudget(self.model)

    def arrived(self, job: Job) -> None:
        """The tightest times seen set the token budget."""
        self.budget.arrived(job)

    def plan(self, jobs: JobIndex, room: Room, now_s: float) -> Plan:
        """FixedCaps' order without classes for prompts; offloaded rows as far as they fit under."""
        plan = FixedCaps(self._caps(jobs)).plan(jobs, room, now_s)
        entries = self._fitting(plan, jobs)
        return replace(plan, entries=entries, waits_for_host=bool(entries))

    def terms(self, jobs: JobIndex) -> Terms:
        """See `Policy`."""
        caps = self._caps(jobs)
        prompts = f"in {caps.be_prefill_rows} rows of an iteration, BE's part of the token budget"
        return replace(FixedCaps(caps).terms(jobs), prompts=prompts)

    def _caps(self, jobs: JobIndex) -> Caps:
        decodes = jobs.count(LS, Stage.DECODE) + jobs.count(BE, Stage.DECODE)
        rows = max(MIN_TOKENS, self.budget.tokens - decodes)
        if all(jobs.count(one, *PROMPTS) for one in (LS, BE)):
            rows //= 2  # for each class
        be_rows = min(rows, self.caps.be_prefill_rows)
        return replace(
            self.caps,
            ls_prefill_rows=min(rows, self.caps.ls_prefill_rows),
            be_prefill_rows=be_rows,
            be_prefill_floor_rows=be_rows,
        )

    def _fitting(self, plan: Plan, jobs: JobIndex) -> tuple[Job, ...]:
        """The first-come rows whose host attention hides behind the device's work."""
        decode = [chunk for chunk in plan.device if chunk.rows == 1]
        rows = sum(chunk.rows for chunk in plan.device)
        work = Work(
            device_rows=rows,
            logit_rows=len(decode),
            device_keys=sum(chunk.job.tokens for chunk in decode),
        )
        device_s = self.correction.apply("device", self.model.predict(work))
        budget, spent, taken = device_s * self.host_bytes_per_s, 0.0, 0
        for job in plan.entries:
            spent += job.tokens * self.kv_bytes
            if spent > budget and (taken or rows):
                break
            taken += 1
        offloaded_s = self.caps.layers * self.model.dense.at(taken)
        together_s = device_s + self.correction.apply("device", offloaded_s)
        pays = (rows + taken) * device_s >= rows * together_s
        return plan.entries[:taken] if pays or not rows else ()

    def observed(self, work: Work, seconds: float) -> None:
        """Corrects the predicted device time, by iterations that did not wait for the host."""
        if work.waited:
            return
        self.correction.observe("device", self.model.predict(work), seconds)
