"""What is left of LS requests after a while if nothing else comes: when to try again. Pure.

Admission is asked again of what will be left by then, so that whatever refuses a request is heeded,
and what refuses it longest decides.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf

from omniserve_agent.scheduling.costs import Load
from omniserve_agent.scheduling.jobs import STAGES, Job, JobIndex, ServiceClass, Stage
from omniserve_agent.scheduling.projection import Projection

LS, BE = ServiceClass.LS, ServiceClass.BE
LEAST_RETRY_S, MOST_RETRY_S = 1.0, 60.0
MOMENT_STEP = 1.2  # from one moment that is looked at to the next
COUNTED_ON = 0.75  # of the time until then: whoever comes again shall not come too early
MOMENTS_S = (
    *(LEAST_RETRY_S * MOMENT_STEP**n for n in range(23)),
    MOST_RETRY_S,
)


def first_moment(holds: Callable[[float], bool]) -> float:
    """Of the moments to try again, the first at which it holds; it is taken to hold from then on.
    The last one where it does at none."""
    at = bisect_left(MOMENTS_S, True, hi=len(MOMENTS_S) - 1, key=holds)
    return MOMENTS_S[at]


@dataclass(frozen=True, slots=True)
class Course:
    """How requests go on: prompts get their first tokens as projected, and all decode to their
    predicted ends; at the tightest pace that was promised while prompts are computed beside them,
    or BE's rows, and as fast as the device can after that."""

    jobs: JobIndex
    prompts: Sequence[Job]  # in the order they are computed
    firsts_s: Sequence[float]  # from now, when each has its first token
    promised_s: float  # between tokens, until `crowded_s`
    fastest_s: float  # and after that
    crowded_s: float

    def left(self, after_s: float) -> JobIndex:
        """What has not ended after COUNTED_ON of that time, with KV as it has grown after all of
        it: neither shall be too little."""
        until_s, left = COUNTED_ON * after_s, JobIndex(self.jobs.block_tokens)
        for job in self.jobs.among(LS, (Stage.DECODE, Stage.SWAPPED)):
            _go_on(left, job, self._tokens(0.0, until_s), self._tokens(0.0, after_s))
        begun_s = 0.0
        for job, first_s in zip(self.prompts, self.firsts_s, strict=True):
            if first_s <= until_s:
                sure, most = self._tokens(first_s, until_s), self._tokens(first_s, after_s)
                _go_on(left, job, 1 + sure, 1 + most)
            elif begun_s < until_s:
                share = (until_s - begun_s) / (first_s - begun_s)
                left.add(replace(job, computed=job.context + int(share * job.remaining)))
            else:
                left.add(job)
            begun_s = max(begun_s, first_s)
        if self.jobs.ls_device_blocks is not None:
            left.ls_device_blocks = self.jobs.ls_device_blocks + _added_blocks(left)
        return left

    def _tokens(self, from_s: float, to_s: float) -> int:
        crowded_s = min(to_s, max(from_s, self.crowded_s))
        return int((crowded_s - from_s) / self.promised_s + (to_s - crowded_s) / self.fastest_s)


def course(jobs: JobIndex, seen: Projection, order: Sequence[Job]) -> Course:
    """Of the requests in `jobs`, whose prompts come in this order."""
    firsts_s = [first.needed_s for first in seen.first_tokens(order)]
    rows = min(seen.caps.max_device_rows, seen.decode.rows + len(order))
    fastest_s = seen.costs.expected(Load(rows, rows, seen.kv_tokens))
    chunk_s = seen.costs.expected(seen.decode.prompt(seen.caps.ls_prefill_rows))
    has_be = any(jobs.count(BE, stage) for stage in STAGES)
    return Course(
        jobs,
        order,
        firsts_s,
        promised_s=max(fastest_s, min(seen.later_s, chunk_s)),
        fastest_s=fastest_s,
        crowded_s=inf if has_be else max(firsts_s, default=0.0),
    )


def _added_blocks(left: JobIndex) -> int:
    """Of the device, that those who decode by then will have taken."""
    decoding = left.at(LS, Stage.DECODE)
    return sum([job.new_blocks(left.block_tokens) - job.device_blocks for job in decoding])


def _go_on(left: JobIndex, job: Job, sure: int, most: int) -> None:
    """A request that decodes, after `most` further tokens, unless those that are `sure` end it."""
    end = max(job.predicted_tokens, job.tokens + 1)
    if job.tokens + sure < end:
        known = min(end, job.tokens + most)
        left.add(replace(job, tokens=known, computed=known - 1, stage=Stage.DECODE))
