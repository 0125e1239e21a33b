"""`gpu_only_priority`: LS first, BE beside it on the device alone (in the manner of Sarathi-Serve).

Every iteration carries at most a fixed number of tokens, chosen by profiling so that an iteration
with that many stays within the tightest TPOT (Agrawal et al., OSDI 2024): decodes first, then LS
prompts, then BE prompts in chunks. Under memory pressure BE gives way: its KV is swapped to the
host, where it waits; it never runs there.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from omniserve_agent.scheduling.budget import largest_fitting
from omniserve_agent.scheduling.fixed_caps import FixedCaps
from omniserve_agent.scheduling.jobs import Job, JobIndex, ServiceClass, Stage
from omniserve_agent.scheduling.latency import LatencyModel, Work
from omniserve_agent.scheduling.plan import Caps, Plan, Room, Unlearning

LS, BE = ServiceClass.LS, ServiceClass.BE
MIN_BUDGET_TOKENS = 16
MAX_BUDGET_TOKENS = 2048  # Sarathi's largest
MARGIN = 0.9  # of the TPOT: requests differ, and the mean of every one has to stay within it


@dataclass
class GpuOnlyPriority(Unlearning):
    """See the module."""

    caps: Caps
    model: LatencyModel
    keys_per_row: int = 512  # context an ordinary row is taken to have when the budget is chosen
    _tightest_s: float | None = None
    _budget_tokens: int = field(init=False)

    def __post_init__(self) -> None:
        self._budget_tokens = self._fitting(0.1)

    def plan(self, jobs: JobIndex, room: Room, now_s: float) -> Plan:
        """Decodes, then LS prompts, then BE prompts within the token budget."""
        left = self._budget_tokens - jobs.count(LS, Stage.DECODE)
        wanted = sum(job.remaining for job in jobs.at(LS, Stage.PREFILL))
        wanted += sum(job.tokens for job in jobs.at(LS, Stage.WAITING))
        ls_rows = max(MIN_BUDGET_TOKENS, min(wanted, left)) if wanted else 0
        be_rows = max(0, min(left - ls_rows, jobs.count(BE, Stage.DECODE)))
        prefill = max(0, left - ls_rows - be_rows)
        caps = replace(
            self.caps,
            be_host=False,
            be_device_rows=be_rows,
            ls_prefill_rows=ls_rows,
            be_prefill_rows=prefill,
            be_prefill_floor_rows=prefill,
        )
        return FixedCaps(caps).plan(jobs, room, now_s)

    def arrived(self, job: Job) -> None:
        """The tightest TPOT seen sets the token budget."""
        if job.deadlines is None:
            return
        if self._tightest_s is None or job.deadlines.tpot_s < self._tightest_s:
            self._tightest_s = job.deadlines.tpot_s
            self._budget_tokens = self._fitting(self._tightest_s)

    def _fitting(self, tpot_s: float) -> int:
        """Tokens of an iteration within `tpot_s`: half of them decode, half are of a prompt."""

        def fits(tokens: int) -> bool:
            rows = tokens // 2
            work = Work(
                device_rows=tokens,
                logit_rows=rows,
                device_keys=rows * self.keys_per_row,
                device_pairs=(tokens - rows) * self.keys_per_row,
            )
            return self.model.predict(work) <= MARGIN * tpot_s

        return largest_fitting(MIN_BUDGET_TOKENS, MAX_BUDGET_TOKENS, fits)
