"""How many tokens an iteration may have so that it stays within a TPOT, chosen by profiling.

As Sarathi-Serve chooses its token budget (Agrawal et al., OSDI 2024): once, for an ordinary mix.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from omniserve_agent.scheduling.budget import largest_fitting
from omniserve_agent.scheduling.jobs import Job
from omniserve_agent.scheduling.latency import LatencyModel, Work

MIN_TOKENS = 16
MAX_TOKENS = 2048  # Sarathi's largest
MARGIN = 0.9  # of the TPOT: requests differ, and the mean of every one has to stay within it
USUAL_TPOT_S = 0.1  # until an LS request says otherwise


@dataclass
class TokenBudget:
    """`tokens` for the tightest TPOT seen."""

    model: LatencyModel
    keys_per_row: int = 512  # context an ordinary row is taken to have
    tokens: int = field(init=False)
    _tightest_s: float | None = None

    def __post_init__(self) -> None:
        self.tokens = self._fitting(USUAL_TPOT_S)

    def arrived(self, job: Job) -> None:
        """A request with a tighter TPOT than all before lowers it."""
        if job.deadlines is None:
            return
        if self._tightest_s is None or job.deadlines.tpot_s < self._tightest_s:
            self._tightest_s = job.deadlines.tpot_s
            self.tokens = self._fitting(self._tightest_s)

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

        return largest_fitting(MIN_TOKENS, MAX_TOKENS, fits)
