"""`static_headroom`: BE within a fixed share of the device (in the manner of Llumnix).

A fixed part of device memory and of the batch is kept free for LS (Sun et al., OSDI 2024, reserve
it per high-priority instance); BE fills the rest and never more. BE that finds no place there goes
to a CPU-only engine that runs whole requests on the host (`Plan.overflow`). Prompts are computed in
chunks beside the decodes, within a token budget that follows from the SLO (`token_budget.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from omniserve_agent.scheduling.fixed_caps import FixedCaps
from omniserve_agent.scheduling.jobs import Job, JobIndex, ServiceClass, Stage
from omniserve_agent.scheduling.latency import LatencyModel
from omniserve_agent.scheduling.plan import Caps, Plan, Room, Terms, Unlearning
from omniserve_agent.scheduling.token_budget import MIN_TOKENS, TokenBudget

LS, BE = ServiceClass.LS, ServiceClass.BE


@dataclass
class StaticHeadroom(Unlearning):
    """`headroom`: the share of device blocks and rows that BE never touches.

    `overflow_jobs`: how many waiting BE requests the CPU-only engine may be given at most in one
    plan; 0: there is none.
    """

    caps: Caps
    model: LatencyModel
    headroom: float = 0.5
    overflow_jobs: int = 0
    budget: TokenBudget = field(init=False)

    def __post_init__(self) -> None:
        self.budget = TokenBudget(self.model)

    def arrived(self, job: Job) -> None:
        """The tightest times seen set the token budget."""
        self.budget.arrived(job)

    def plan(self, jobs: JobIndex, room: Room, now_s: float) -> Plan:
        """Fixed caps; BE in its share."""
        plan = FixedCaps(self._caps(jobs)).plan(jobs, room, now_s)
        return replace(plan, overflow=tuple(self._overflow(jobs, plan)))

    def terms(self, jobs: JobIndex) -> Terms:
        """See `Policy`."""
        caps = self._caps(jobs)
        prompts = f"in at most {caps.be_prefill_rows} rows of an iteration, BE's share"
        return replace(FixedCaps(caps).terms(jobs), prompts=prompts)

    def _caps(self, jobs: JobIndex) -> Caps:
        share = 1.0 - self.headroom
        be_rows = int(share * self.caps.max_device_rows)
        decodes = jobs.count(LS, Stage.DECODE) + min(be_rows, jobs.count(BE, Stage.DECODE))
        prompt_rows = max(MIN_TOKENS, self.budget.tokens - decodes)
        return replace(
            self.caps,
            be_host=False,
            be_device_blocks=int(share * self.caps.device_blocks),
            be_device_rows=be_rows,
            ls_prefill_rows=min(
                prompt_rows - self.caps.be_prefill_floor_rows, self.caps.ls_prefill_rows
            ),
            be_prefill_rows=min(int(share * prompt_rows), self.caps.be_prefill_rows),
        )

    def _overflow(self, jobs: JobIndex, plan: Plan) -> Iterator[Job]:
        """Waiting requests beyond those that are next on the device."""
        admitted = {admission.job.handle for admission in plan.admissions}
        waiting = [job for job in jobs.at(BE, Stage.WAITING) if job.handle not in admitted]
        behind = waiting[self.caps.staged_jobs :]
        yield from behind[: self.overflow_jobs]
