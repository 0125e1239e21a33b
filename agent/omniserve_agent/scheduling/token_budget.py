"""How many tokens an iteration may have so that it stays within a TPOT, chosen by profiling.

As Sarathi-Serve chooses its token budget (Agrawal et al., OSDI 2024): once, for an ordinary mix.
Where prompts as long as most would then take more than half of their TTFT, chunk by chunk, the
budget is the least with which they do not, or that which is quickest: the TPOT is a mean and can
bear it, a first token can not. Where they are late with any, it stays with the TPOT.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf

from omniserve_agent.scheduling.budget import largest_fitting
from omniserve_agent.scheduling.jobs import Job
from omniserve_agent.scheduling.latency import LatencyModel, Work
from omniserve_agent.scheduling.traffic import Traffic

MIN_TOKENS = 16
MAX_TOKENS = 2048  # Sarathi's largest
MARGIN = 0.9  # of the TPOT: requests differ, and the mean of every one has to stay within it
TTFT_SHARE = 0.5  # of a TTFT is for computing the prompt; the rest is for waiting
USUAL_TPOT_S = 0.1  # until an LS request says otherwise


@dataclass
class TokenBudget:
    """`tokens` for the tightest times seen."""

    model: LatencyModel
    keys_per_row: int = 512  # context an ordinary row is taken to have
    tokens: int = field(init=False)
    _tpot_s: float = USUAL_TPOT_S
    _ttft_s: float = inf
    _traffic: Traffic = field(default_factory=lambda: Traffic(inf))

    def __post_init__(self) -> None:
        self._choose()

    def arrived(self, job: Job) -> None:
        """Of an LS request: tighter times than all before, or longer prompts, set it anew."""
        due = job.deadlines
        if due is None:
            return
        before = self._tpot_s, self._ttft_s, self._traffic.p95_prompt
        first = self._ttft_s == inf
        self._tpot_s = due.tpot_s if first else min(self._tpot_s, due.tpot_s)
        self._ttft_s = min(self._ttft_s, due.ttft_s)
        self._traffic.arrived(job.remaining, due.ttft_s)
        if before != (self._tpot_s, self._ttft_s, self._traffic.p95_prompt):
            self._choose()

    def _choose(self) -> None:
        """By the TPOT, and then as many more as prompts of p95 length need."""
        self.tokens = self._fitting(self._tpot_s)
        prompt_s = {n: self._prompt_s(n) for n in range(self.tokens, MAX_TOKENS + 1, MIN_TOKENS)}
        quickest_s = min(prompt_s.values())
        if quickest_s <= self._ttft_s:
            most_s = max(TTFT_SHARE * self._ttft_s, quickest_s)
            self.tokens = next(n for n, seconds in prompt_s.items() if seconds <= most_s)

    def _prompt_s(self, tokens: int) -> float:
        """A prompt of p95 length, chunk by chunk in half of the tokens of every iteration."""
        rows = max(1, tokens - tokens // 2)
        return -(-self._traffic.p95_prompt // rows) * self._iteration_s(tokens)

    def _fitting(self, tpot_s: float) -> int:
        """Tokens of an iteration within `tpot_s`: half of them decode, half are of a prompt."""

        return largest_fitting(
            MIN_TOKENS, MAX_TOKENS, lambda n: self._iteration_s(n) <= MARGIN * tpot_s
        )

    def _iteration_s(self, tokens: int) -> float:
        rows = tokens // 2
        work = Work(
            device_rows=tokens,
            logit_rows=rows,
            device_keys=rows * self.keys_per_row,
            device_pairs=(tokens - rows) * self.keys_per_row,
        )
        return self.model.predict(work)
