"""`gpu_only_priority`: LS first, BE beside it on the device alone (in the manner of Sarathi-Serve).

Every iteration carries at most a fixed number of tokens, chosen by profiling so that an iteration
with that many stays within the tightest TPOT (Agrawal et al., OSDI 2024): decodes first, then LS
prompts, then BE prompts in chunks. Under memory pressure BE gives way: its KV is swapped to the
host, where it waits; it never runs there.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from omniserve_agent.scheduling.fixed_caps import FixedCaps
from omniserve_agent.scheduling.jobs import Job, JobIndex, ServiceClass, Stage
from omniserve_agent.scheduling.latency import LatencyModel
from omniserve_agent.scheduling.plan import Caps, Plan, Room, Terms, Unlearning
from omniserve_agent.scheduling.token_budget import MIN_TOKENS, TokenBudget

LS, BE = ServiceClass.LS, ServiceClass.BE


@dataclass
class GpuOnlyPriority(Unlearning):
    """See the module."""

    caps: Caps
    model: LatencyModel
    budget: TokenBudget = field(init=False)

    def __post_init__(self) -> None:
        self.budget = TokenBudget(self.model)

    def plan(self, jobs: JobIndex, room: Room, now_s: float) -> Plan:
        """Decodes, then LS prompts, then BE prompts within the token budget."""
        return FixedCaps(self._caps(jobs)).plan(jobs, room, now_s)

    def terms(self, jobs: JobIndex) -> Terms:
        """See `Policy`."""
        caps = self._caps(jobs)
        prompts = (
            f"in the {caps.be_prefill_rows} rows that decodes and LS leave of the token budget"
        )
        return replace(FixedCaps(caps).terms(jobs), prompts=prompts)

    def _caps(self, jobs: JobIndex) -> Caps:
        left = self.budget.tokens - jobs.count(LS, Stage.DECODE)
        wanted = sum(job.remaining for job in jobs.among(LS, (Stage.PREFILL, Stage.WAITING)))
        ls_rows = max(MIN_TOKENS, min(wanted, left)) if wanted else 0
        be_rows = max(0, min(left - ls_rows, jobs.count(BE, Stage.DECODE)))
        prefill = max(0, left - ls_rows - be_rows)
        return replace(
            self.caps,
            be_host=False,
            be_device_rows=be_rows,
            ls_prefill_rows=ls_rows,
            be_prefill_rows=prefill,
            be_prefill_floor_rows=prefill,
        )

    def arrived(self, job: Job) -> None:
        """The tightest times seen set the token budget."""
        self.budget.arrived(job)
