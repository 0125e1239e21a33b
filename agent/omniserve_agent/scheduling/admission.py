"""Admission: whether one more LS request can attain without another one missing.

The engine is projected forward: prompts are computed in the policy's own order, in chunks that
leave decodes within their TPOT; whoever finds no row or no KV waits for decodes to end, which they
do at their services' p90 lengths. Only load refuses: no waiting would help a request that misses on
an idle engine as well. It is taken where nobody else misses for it and its KV fits, and is late.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import chain
from math import inf
from typing import Protocol

from omniserve_agent.scheduling.costs import Costs, Load
from omniserve_agent.scheduling.deadlines import Deadlines
from omniserve_agent.scheduling.host_worth import PRICED_CHUNK_ROWS
from omniserve_agent.scheduling.jobs import Job, JobIndex, Stage
from omniserve_agent.scheduling.plan import Caps
from omniserve_agent.scheduling.projection import (
    SAFETY,
    Prefill,
    Projection,
    needed_pace_s,
    project,
)
from omniserve_agent.scheduling.retry import LEAST_RETRY_S, course, first_moment
from omniserve_agent.scheduling.slack import least_laxity


class AdmissionMode(StrEnum):
    """What happens to a request that would miss."""

    OFF = "off"  # taken all the same
    REJECT = "reject"  # 429 with Retry-After
    QUEUE = "queue"  # taken once it would attain; where that is lost, once nobody else waits


@dataclass(frozen=True, slots=True)
class Verdict:
    """`reason` for the error message."""

    admitted: bool
    reason: str = ""


ADMITTED = Verdict(True)


class Admission(Protocol):
    """Whoever lets LS requests in."""

    @property
    def mode(self) -> AdmissionMode:
        """What happens to a request that would miss."""

    def judge(self, jobs: JobIndex, new: Job, now_s: float) -> Verdict:
        """Whether `new` and all that were admitted before it are predicted to attain."""

    def lost(self, new: Job, now_s: float) -> bool:
        """Whether one to be held back would now miss on an idle engine as well."""

    def retry_s(self, jobs: JobIndex, refused: Job, now_s: float) -> float:
        """When one like it would be let in, in seconds from now, if nothing else came."""


class Open:
    """Lets everything in."""

    mode = AdmissionMode.OFF

    def judge(self, jobs: JobIndex, new: Job, now_s: float) -> Verdict:
        """See `Admission`."""
        return ADMITTED

    def lost(self, new: Job, now_s: float) -> bool:
        """See `Admission`."""
        return False

    def retry_s(self, jobs: JobIndex, refused: Job, now_s: float) -> float:
        """See `Admission`."""
        return LEAST_RETRY_S


@dataclass(frozen=True)
class Gate:
    """Judges LS requests that have an SLO. `costs` are the policy's own, corrected online.

    More load lets nobody in, unless it makes an admitted prompt late: that sets no deadline then.
    """

    costs: Costs
    caps: Caps
    mode: AdmissionMode = AdmissionMode.REJECT
    by_laxity: bool = True  # as the policy orders LS prompts; else by rank, those begun first

    def judge(self, jobs: JobIndex, new: Job, now_s: float) -> Verdict:
        """See `Admission`."""
        due = new.deadlines
        if self.mode is AdmissionMode.OFF or due is None:
            return ADMITTED
        seen, misses = self.project(jobs, now_s), self.lost(new, now_s)
        why = self._refusal(seen, new, misses)
        if why and not misses and self.hopeless(new):
            misses, why = True, self._refusal(seen, new, misses=True)
        nobody_there = not (seen.prompts or seen.decode.rows)
        return ADMITTED if why is None or (misses and nobody_there) else Verdict(False, why)

    def project(self, jobs: JobIndex, now_s: float) -> Projection:
        """What is there already."""
        return project(jobs, self.costs, self.caps, now_s)

    def hopeless(self, new: Job) -> bool:
        """Whether it would miss on an idle engine that begins when the request comes."""
        due = new.deadlines
        return due is not None and self._misses_alone(new, due, due.ttft_s)

    def lost(self, new: Job, now_s: float) -> bool:
        """See `Admission`."""
        due = new.deadlines
        if self.mode is not AdmissionMode.QUEUE or due is None:
            return False
        return self._misses_alone(new, due, due.due_s - now_s)

    def retry_s(self, jobs: JobIndex, refused: Job, now_s: float) -> float:
        """See `Admission`."""
        seen, due = self.project(jobs, now_s), refused.deadlines
        ahead = course(jobs, seen, self.order(seen.prompts, now_s))

        def admits(after_s: float) -> bool:
            then_s = now_s + after_s
            fresh = None if due is None else Deadlines(then_s, due.ttft_s, due.tpot_s)
            new = replace(refused, deadlines=fresh)
            return self.judge(ahead.left(after_s), new, then_s).admitted

        return first_moment(admits)

    def order(self, prompts: Sequence[Job], now_s: float) -> Sequence[Job]:
        """As the policy will compute them."""
        if not self.by_laxity:
            return sorted(prompts, key=lambda job: (job.stage is not Stage.PREFILL, job.rank))
        row_s = self.costs.prompt_s(PRICED_CHUNK_ROWS) / PRICED_CHUNK_ROWS
        return least_laxity(prompts, now_s, row_s).order

    @property
    def _room_tokens(self) -> int:
        return self.caps.device_blocks * self.caps.block_tokens

    def _misses_alone(self, new: Job, due: Deadlines, left_s: float) -> bool:
        """Whether it would on an idle engine, with so much time for its first token."""
        first_s = Prefill(self.costs, Load(), self.caps.ls_prefill_rows).seconds(new.remaining, inf)
        late = first_s > SAFETY * left_s or needed_pace_s(self.costs) > due.tpot_s
        return late or new.tokens > SAFETY * self._room_tokens

    def _refusal(self, seen: Projection, new: Job, misses: bool) -> str | None:
        """Why not. Of one that misses anyway others may not suffer: its own SLO is no reason."""
        held_back = misses and self.mode is AdmissionMode.QUEUE
        first = self._after_others(seen) if held_back else self._in_time(seen, new, misses)
        tpot_s = inf if misses or new.deadlines is None else new.deadlines.tpot_s
        return next(chain(first, self._pace(seen, tpot_s), self._memory(seen, new)), None)

    def _after_others(self, seen: Projection) -> Iterator[str]:
        """It was held back until it could no longer attain, and may disturb nobody."""
        if seen.prompts:
            yield "others wait that can still attain"

    def _in_time(self, seen: Projection, new: Job, misses: bool) -> Iterator[str]:
        """The newcomer, and prompts behind it that would be in time without it."""
        order = self.order((*seen.prompts, new), seen.now_s)
        place = order.index(new)
        others = (*order[:place], *order[place + 1 :])
        own, *behind = seen.first_tokens(order, place)
        if not misses and not own.in_time:
            yield _late("first token", own.needed_s, own.left_s)
        without = seen.first_tokens(others, place)
        for said, before in zip(behind, without, strict=True):
            if before.in_time and not said.in_time:
                yield _late("first token of an admitted request", said.needed_s, said.left_s)

    def _pace(self, seen: Projection, tpot_s: float) -> Iterator[str]:
        """An iteration once the newcomer and all prompts decode beside the others."""
        rows = min(self.caps.max_device_rows, seen.decode.rows + len(seen.prompts) + 1)
        step_s = self.costs.expected(Load(rows, rows, seen.kv_tokens))
        allowed_s = min(tpot_s, seen.later_s)
        if step_s > SAFETY * allowed_s:
            yield _late("token", step_s, allowed_s)

    def _memory(self, seen: Projection, new: Job) -> Iterator[str]:
        """Whether what all LS requests hold at the newcomer's first token fits the device, where KV
        that several hold is there once."""
        size, decoding = self.caps.block_tokens, seen.decode.rows
        rows = sum([job.new_tokens(size) for job in (*seen.prompts, new)])
        iterations = rows / seen.prefill.at_once(seen.later_s)
        held = seen.decode.keys - seen.shared_tokens + rows + int(decoding * (1 + iterations))
        if held > SAFETY * self._room_tokens:
            yield (
                f"LS requests would hold {held} tokens of KV "
                f"of {self._room_tokens} that fit the device"
            )


def _late(what: str, predicted_s: float, allowed_s: float) -> str:
    return (
        f"the {what} would take {predicted_s * 1e3:.0f} ms, "
        f"more than {SAFETY:.0%} of the {max(0, allowed_s) * 1e3:.0f} ms left"
    )
