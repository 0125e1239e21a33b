"""Admission: whether one more LS request can attain without another one missing (design.md, 7).

The engine is projected forward: prompts are computed in the policy's own order, in chunks that
leave decodes within their TPOT; whoever finds no row or no KV waits for decodes to end, which they
do at their services' p90 lengths. Only load refuses: a request whose own prompt cannot be computed
within its TTFT on an idle engine is taken and counts as missed, since no waiting would help it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain
from math import inf
from typing import Protocol

from omniserve_agent.scheduling.costs import Costs, Load
from omniserve_agent.scheduling.host_worth import PRICED_CHUNK_ROWS
from omniserve_agent.scheduling.jobs import Job, JobIndex, Stage
from omniserve_agent.scheduling.plan import Caps
from omniserve_agent.scheduling.projection import (
    SAFETY,
    FirstToken,
    Prefill,
    Projection,
    project,
)
from omniserve_agent.scheduling.slack import least_laxity

LEAST_RETRY_S, MOST_RETRY_S = 1.0, 60.0


class AdmissionMode(StrEnum):
    """What happens to a request that would miss."""

    OFF = "off"  # taken all the same
    REJECT = "reject"  # 429 with Retry-After
    QUEUE = "queue"  # taken once it would attain; where that is lost, once nobody waits


@dataclass(frozen=True, slots=True)
class Verdict:
    """`reason` for the error message; `retry_after_s` is a prediction."""

    admitted: bool
    reason: str = ""
    retry_after_s: float = 0.0


ADMITTED = Verdict(True)


class Admission(Protocol):
    """Whoever lets LS requests in."""

    @property
    def mode(self) -> AdmissionMode:
        """What happens to a request that would miss."""

    def judge(self, jobs: JobIndex, new: Job, now_s: float) -> Verdict:
        """Whether `new` and all that were admitted before it are predicted to attain."""

    def lost(self, new: Job, now_s: float) -> bool:
        """Whether a request was held back for so long that even an idle engine comes too late."""


class Open:
    """Lets everything in."""

    mode = AdmissionMode.OFF

    def judge(self, jobs: JobIndex, new: Job, now_s: float) -> Verdict:
        """See `Admission`."""
        return ADMITTED

    def lost(self, new: Job, now_s: float) -> bool:
        """See `Admission`."""
        return False


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
        seen, lost = self.project(jobs, now_s), self.lost(new, now_s)
        if lost and not (seen.prompts or seen.decode.rows):
            return ADMITTED  # nobody is there
        first = self._after_others if lost else self._in_time
        checks = (first(seen, new), self._pace(seen, due.tpot_s), self._memory(seen, new))
        refused = next((said for said in chain(*checks) if not said.admitted), None)
        return ADMITTED if refused is None or self.hopeless(new) else refused

    def project(self, jobs: JobIndex, now_s: float) -> Projection:
        """What is there already."""
        return project(jobs, self.costs, self.caps, now_s)

    def hopeless(self, new: Job) -> bool:
        """Whether an idle engine would come too late even if it began when the request came."""
        due = new.deadlines
        return due is not None and self._alone_s(new) > SAFETY * due.ttft_s

    def lost(self, new: Job, now_s: float) -> bool:
        """See `Admission`."""
        due = new.deadlines
        if self.mode is not AdmissionMode.QUEUE or due is None:
            return False
        return due.due_s - now_s <= self._alone_s(new)

    def _alone_s(self, new: Job) -> float:
        return Prefill(self.costs, Load(), self.caps.ls_prefill_rows).seconds(new.tokens, inf)

    def order(self, prompts: Sequence[Job], now_s: float) -> Sequence[Job]:
        """As the policy will compute them."""
        if not self.by_laxity:
            return sorted(prompts, key=lambda job: (job.stage is not Stage.PREFILL, job.rank))
        row_s = self.costs.prompt_s(PRICED_CHUNK_ROWS) / PRICED_CHUNK_ROWS
        return least_laxity(prompts, now_s, row_s).order

    def _after_others(self, seen: Projection, _: Job) -> Iterator[Verdict]:
        """It was held back for so long that it can not attain, and may disturb nobody."""
        yield Verdict(not seen.prompts, "others wait that can still attain", LEAST_RETRY_S)

    def _in_time(self, seen: Projection, new: Job) -> Iterator[Verdict]:
        """The newcomer, and prompts behind it that would be in time without it."""
        order = self.order((*seen.prompts, new), seen.now_s)
        place = order.index(new)
        others = (*order[:place], *order[place + 1 :])
        own, *behind = map(_first_token, seen.first_tokens(order, place))
        yield own
        without = seen.first_tokens(others, place)
        yield from (said for said, before in zip(behind, without, strict=True) if before.in_time)

    def _pace(self, seen: Projection, tpot_s: float) -> Iterator[Verdict]:
        """An iteration once the newcomer and all prompts decode beside the others."""
        rows = min(self.caps.max_device_rows, seen.decode.rows + len(seen.prompts) + 1)
        step_s = self.costs.expected(Load(rows, rows, seen.kv_tokens))
        allowed_s = min(tpot_s, seen.later_s)
        if step_s > SAFETY * allowed_s:
            ends = rows * (1.0 - allowed_s / step_s)  # so many must end first
            yield _refused("token", step_s, allowed_s, ends * seen.tokens_per_end * step_s)

    def _memory(self, seen: Projection, new: Job) -> Iterator[Verdict]:
        """Whether what all LS requests hold at the newcomer's first token fits the device."""
        rows, decoding = sum(job.tokens for job in seen.prompts) + new.tokens, seen.decode.rows
        iterations = rows / seen.prefill.at_once(seen.later_s)
        held = seen.decode.keys + rows + int(decoding * (1 + iterations))
        room = self.caps.device_blocks * self.caps.block_tokens
        if held > SAFETY * room:
            ends = (held - SAFETY * room) * decoding / max(1, seen.decode.keys)
            retry_s = ends * seen.tokens_per_end * self.costs.expected(seen.decode)
            reason = f"LS requests would hold {held} tokens of KV of {room} that fit the device"
            yield Verdict(False, reason, _bounded(retry_s))


def _first_token(seen: FirstToken) -> Verdict:
    if seen.in_time:
        return ADMITTED
    return _refused("first token", seen.needed_s, seen.left_s, seen.needed_s - seen.left_s)


def _refused(what: str, predicted_s: float, allowed_s: float, retry_s: float) -> Verdict:
    return Verdict(
        False,
        f"the {what} would take {predicted_s * 1e3:.0f} ms, "
        f"more than {SAFETY:.0%} of the {max(0, allowed_s) * 1e3:.0f} ms left",
        _bounded(retry_s),
    )


def _bounded(seconds: float) -> float:
    return min(max(seconds, LEAST_RETRY_S), MOST_RETRY_S)
