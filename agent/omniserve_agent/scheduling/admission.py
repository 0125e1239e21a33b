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
from itertools import accumulate
from typing import Protocol

from omniserve_agent.scheduling.budget import SHORTEST_S, largest_fitting
from omniserve_agent.scheduling.costs import Costs, Load
from omniserve_agent.scheduling.jobs import Job, JobIndex, ServiceClass, Stage
from omniserve_agent.scheduling.omniserve import PRICED_CHUNK_ROWS
from omniserve_agent.scheduling.plan import Caps
from omniserve_agent.scheduling.shared_prompts import rows_once
from omniserve_agent.scheduling.slack import least_laxity

LS = ServiceClass.LS
LEAST_CHUNK_ROWS = 16  # LS prefill never stands still
SAFETY = 0.9  # of a deadline is used: the projection is an estimate
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


@dataclass(frozen=True, slots=True)
class _State:
    """What is there already, as far as LS is concerned."""

    decode: Load
    tpot_s: float  # the tightest
    left_tokens: int  # of the decoding requests, to their predicted ends
    kv_tokens: int  # that all admitted requests hold half-way to their predicted ends
    prompts: tuple[Job, ...]  # that wait or are being computed

    @property
    def tokens_per_end(self) -> float:
        """Tokens each decoding request still puts out on the average, until one has ended."""
        rows = max(1, self.decode.rows)
        return self.left_tokens / rows / rows


@dataclass(frozen=True)
class Gate:
    """Judges LS requests that have an SLO. `costs` are the policy's own, corrected online."""

    costs: Costs
    caps: Caps
    mode: AdmissionMode = AdmissionMode.REJECT
    by_laxity: bool = True  # as the policy orders LS prompts; else by rank, those begun first

    def judge(self, jobs: JobIndex, new: Job, now_s: float) -> Verdict:
        """See `Admission`."""
        due = new.deadlines
        if self.mode is AdmissionMode.OFF or due is None:
            return ADMITTED
        if self._prefill_s(Load(), new.tokens, due.tpot_s) > SAFETY * due.ttft_s:
            return ADMITTED
        state, lost = _state(jobs, due.tpot_s), self.lost(new, now_s)
        refusals = self._refusals(state, new, now_s, lost)
        return next((no for no in refusals if not no.admitted), ADMITTED)

    def lost(self, new: Job, now_s: float) -> bool:
        """See `Admission`."""
        due = new.deadlines
        if self.mode is not AdmissionMode.QUEUE or due is None:
            return False
        return due.due_s - now_s <= self._prefill_s(Load(), new.tokens, due.tpot_s)

    def _refusals(self, state: _State, new: Job, now_s: float, lost: bool) -> Iterator[Verdict]:
        """`lost`: it was held back for so long that it can not attain, and may disturb nobody."""
        if lost:
            yield Verdict(not state.prompts, "others wait that can still attain", LEAST_RETRY_S)
        else:
            yield from self._first_tokens(state, new, now_s)
        yield self._pace(state)
        yield self._memory(state, new)

    def _first_tokens(self, state: _State, new: Job, now_s: float) -> Iterator[Verdict]:
        """The newcomer's, and those of prompts behind it that could have been in time."""
        order = self._order((*state.prompts, new), now_s)
        first, size = order.index(new), self.caps.block_tokens
        with_new = [*accumulate(rows_once(order, size))]
        yield self._first_token(state, new, first + 1, with_new[first], now_s)
        behind = order[first + 1 :]
        without_new = [*accumulate(rows_once((*order[:first], *behind), size))]
        for place, job in enumerate(behind, first + 1):
            if self._first_token(state, job, place, without_new[place - 1], now_s).admitted:
                yield self._first_token(state, job, place + 1, with_new[place], now_s)

    def _order(self, prompts: Sequence[Job], now_s: float) -> Sequence[Job]:
        if not self.by_laxity:
            return sorted(prompts, key=lambda job: (job.stage is not Stage.PREFILL, job.rank))
        row_s = self.costs.prompt_s(PRICED_CHUNK_ROWS) / PRICED_CHUNK_ROWS
        return least_laxity(prompts, now_s, row_s).order

    def _first_token(
        self, state: _State, job: Job, places: int, rows: int, now_s: float
    ) -> Verdict:
        """Of a prompt that is at the end of `places` prompts with so many rows together."""
        prefill_s = self._prefill_s(state.decode, rows, state.tpot_s)
        missing = places - (self.caps.max_device_rows - state.decode.rows)
        wait_s = max(0, missing) * state.tokens_per_end * self.costs.expected(state.decode)
        needed_s, left_s = max(prefill_s, wait_s), _due_s(job) - now_s
        if needed_s <= SAFETY * left_s:
            return ADMITTED
        return _refused("first token", needed_s, left_s, needed_s - left_s)

    def _prefill_s(self, decode: Load, rows: int, tpot_s: float) -> float:
        """Prompt rows beside the decodes, as many an iteration as keep those within `tpot_s`."""
        at_once = largest_fitting(
            LEAST_CHUNK_ROWS,
            max(LEAST_CHUNK_ROWS, self.caps.ls_prefill_rows),
            lambda chunk: self.costs.expected(decode.prompt(chunk)) <= tpot_s,
        )
        if rows <= at_once:
            return self.costs.expected(decode.prompt(rows))
        return rows / at_once * self.costs.expected(decode.prompt(at_once))

    def _pace(self, state: _State) -> Verdict:
        """An iteration once the newcomer and all prompts decode beside the others."""
        more = len(state.prompts) + 1
        rows = min(self.caps.max_device_rows, state.decode.rows + more)
        step_s = self.costs.expected(Load(rows, rows, state.kv_tokens))
        if step_s <= SAFETY * state.tpot_s:
            return ADMITTED
        ends = rows * (1.0 - state.tpot_s / step_s)  # so many must end first
        return _refused("token", step_s, state.tpot_s, ends * state.tokens_per_end * step_s)

    def _memory(self, state: _State, new: Job) -> Verdict:
        """Whether what all LS requests hold at the newcomer's first token fits the device."""
        rows = sum(job.tokens for job in state.prompts) + new.tokens
        step_s = max(SHORTEST_S, self.costs.expected(state.decode))
        steps = self._prefill_s(state.decode, rows, state.tpot_s) / step_s
        held = state.decode.keys + rows + int(state.decode.rows * (1 + steps))
        room = self.caps.device_blocks * self.caps.block_tokens
        if held <= SAFETY * room:
            return ADMITTED
        ends = (held - SAFETY * room) * state.decode.rows / max(1, state.decode.keys)
        reason = f"LS requests would hold {held} tokens of KV of {room} that fit the device"
        return Verdict(False, reason, _bounded(ends * state.tokens_per_end * step_s))


def _state(jobs: JobIndex, tpot_s: float) -> _State:
    decoding = jobs.at(LS, Stage.DECODE)
    prompts = [job for stage in PROMPT_STAGES for job in jobs.at(LS, stage)]
    swapped = jobs.at(LS, Stage.SWAPPED)
    tpots = [job.deadlines.tpot_s for job in decoding if job.deadlines is not None]
    halfway = [(j.tokens + j.predicted_tokens) // 2 for j in (*decoding, *prompts, *swapped)]
    count = len(decoding) + len(swapped)
    return _State(
        decode=Load(count, count, sum([job.tokens for job in (*decoding, *swapped)])),
        tpot_s=min([tpot_s, *tpots]),
        left_tokens=sum([max(1, job.predicted_tokens - job.tokens) for job in decoding]),
        kv_tokens=sum(halfway),
        prompts=tuple(prompts),
    )


PROMPT_STAGES = (Stage.PREFILL, Stage.WAITING)


def _due_s(job: Job) -> float:
    return job.deadlines.due_s if job.deadlines is not None else float("inf")


def _refused(what: str, predicted_s: float, allowed_s: float, retry_s: float) -> Verdict:
    return Verdict(
        False,
        f"the {what} would take {predicted_s * 1e3:.0f} ms, "
        f"more than {SAFETY:.0%} of the {max(0, allowed_s) * 1e3:.0f} ms left",
        _bounded(retry_s),
    )


def _bounded(seconds: float) -> float:
    return min(max(seconds, LEAST_RETRY_S), MOST_RETRY_S)
