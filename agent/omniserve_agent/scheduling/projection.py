"""What LS requests that are there will take: their first tokens in an order, and the pace after.

Every estimate grows with load: another request, a longer one or a shorter TPOT makes none smaller.
Requests that share a prompt aside: what computes it for all makes the others quicker.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from math import inf
from typing import NamedTuple

from omniserve_agent.scheduling.costs import Costs, Load
from omniserve_agent.scheduling.jobs import Job, JobIndex, ServiceClass, Stage
from omniserve_agent.scheduling.plan import Caps
from omniserve_agent.scheduling.shared_prompts import rows_once

LS = ServiceClass.LS
LEAST_CHUNK_ROWS = 16  # LS prefill never stands still
CHUNK_STEP = 1.15  # from one chunk size that is looked at to the next
SAFETY = 0.9  # of a deadline is used: the projection is an estimate


def needed_pace_s(costs: Costs) -> float:
    """The shortest TPOT that an idle engine keeps; a request with a shorter one sets no bound."""
    return costs.expected(Load(1, 1)) / SAFETY


class FirstToken(NamedTuple):
    """Of one prompt, in seconds from now."""

    needed_s: float
    left_s: float  # until it is due

    @property
    def in_time(self) -> bool:
        """Whether it comes well within what is left."""
        return self.needed_s <= SAFETY * self.left_s


@dataclass(slots=True)
class Prefill:
    """Prompt rows beside `decode`, as many an iteration as keep it within a TPOT; in chunks of a
    fixed grid up to `most_rows`, or more load could find a better size."""

    costs: Costs
    decode: Load
    most_rows: int
    _rows: list[int] = field(default_factory=list)
    _seconds: list[float] = field(default_factory=list)  # of an iteration with so many, ascending

    def __post_init__(self) -> None:
        rows = LEAST_CHUNK_ROWS
        while True:
            self._rows.append(rows)
            self._seconds.append(self.costs.expected(self.decode.prompt(rows)))
            if rows >= self.most_rows:
                return
            rows = min(self.most_rows, int(rows * CHUNK_STEP) + 1)

    def at_once(self, tpot_s: float) -> int:
        """The most rows of an iteration."""
        return self._rows[self._sizes(tpot_s) - 1]

    def seconds(self, rows: int, tpot_s: float) -> float:
        """Of so many rows, by the cheapest chunk: that need not be the largest where the dense
        modules have steps, and more load, which leaves fewer sizes, would else seem to make prompts
        quicker."""
        sizes = self._sizes(tpot_s)
        parts = bisect_right(self._rows, rows - 1, hi=sizes)
        at_once = zip(self._rows[:parts], self._seconds, strict=False)
        in_parts_s = rows * min([seconds / chunk for chunk, seconds in at_once], default=inf)
        if rows > self._rows[sizes - 1]:
            return in_parts_s
        return min(in_parts_s, self.costs.expected(self.decode.prompt(rows)))

    def _sizes(self, tpot_s: float) -> int:
        return max(1, bisect_right(self._seconds, tpot_s))


@dataclass(frozen=True, slots=True)
class Projection:
    """See the module. Of TPOTs to come those count that an idle engine could keep, of requests
    whose TTFT has not passed."""

    costs: Costs
    caps: Caps
    now_s: float
    prefill: Prefill  # beside those that decode
    decode: Load
    tpot_s: float  # the tightest of those that decode; inf where none do
    later_s: float  # the same once all that are there decode
    left_tokens: int  # of the decoding requests, to their predicted ends
    kv_tokens: int  # that all admitted requests hold half-way to their predicted ends
    prompts: Sequence[Job]  # that wait or are being computed
    shared_tokens: int  # of the KV on the device, that counts more than once in these and `decode`
    needed_s: float  # see `needed_pace_s`

    def first_tokens(self, order: Sequence[Job], first: int = 0) -> Iterator[FirstToken]:
        """Of prompts in this order, from the `first` on. Each is computed beside those that decode,
        and within the TPOTs of prompts before it: by then they decode too."""
        rows = [*accumulate(rows_once(order, self.caps.block_tokens))]
        tpots = [*accumulate(map(self._tpot_s, order), min, initial=self.tpot_s)]
        left = [*accumulate(map(_left_tokens, order), initial=self.left_tokens)]
        free, token_s = self.caps.max_device_rows - self.decode.rows, self._token_s()
        for place in range(first, len(order)):
            prefill_s = self.prefill.seconds(rows[place], tpots[place])
            wait_s = max(0, place + 1 - free) * left[place] * token_s
            left_s = _due_s(order[place]) - self.now_s
            yield FirstToken(prefill_s + wait_s, left_s)

    def _token_s(self) -> float:
        """Until a place comes free, by each token that those who have one still put out."""
        return self.costs.expected(self.decode) / self.caps.max_device_rows**2

    def _tpot_s(self, job: Job) -> float:
        return _tpot_s(job, self.now_s, self.needed_s)


def project(jobs: JobIndex, costs: Costs, caps: Caps, now_s: float) -> Projection:
    """From what an engine has."""
    decoding, swapped = jobs.at(LS, Stage.DECODE), jobs.at(LS, Stage.SWAPPED)
    prompts = [*jobs.at(LS, Stage.PREFILL), *jobs.at(LS, Stage.WAITING)]
    going, count = [*decoding, *swapped], len(decoding) + len(swapped)
    decode = Load(count, count, sum([job.tokens for job in going]))
    on_device = sum([job.tokens for job in (*decoding, *jobs.at(LS, Stage.PREFILL))])
    needed_s = needed_pace_s(costs)
    tpots = [due.tpot_s for job in decoding if (due := job.deadlines)]
    tpot_s = min([tpot_s for tpot_s in tpots if tpot_s >= needed_s], default=inf)
    return Projection(
        costs,
        caps,
        now_s,
        prefill=Prefill(costs, decode, caps.ls_prefill_rows),
        decode=decode,
        tpot_s=tpot_s,
        later_s=min([tpot_s, *(_tpot_s(job, now_s, needed_s) for job in (*prompts, *swapped))]),
        left_tokens=sum([_left_tokens(job) for job in going]),
        kv_tokens=sum([(j.tokens + j.predicted_tokens) // 2 for j in (*going, *prompts)]),
        prompts=prompts,
        shared_tokens=on_device - jobs.held_once(on_device),
        needed_s=needed_s,
    )


def _tpot_s(job: Job, now_s: float, needed_s: float) -> float:
    due = job.deadlines
    if due is None or due.due_s < now_s or due.tpot_s < needed_s:
        return inf
    return due.tpot_s


def _due_s(job: Job) -> float:
    return job.deadlines.due_s if job.deadlines is not None else inf


def _left_tokens(job: Job) -> int:
    """To its predicted end; who has passed that goes on for as long again as it did so far."""
    left = job.predicted_tokens - job.tokens
    if left > 0:
        return left
    return max(1, min(job.tokens - job.prompt_tokens, job.max_total_tokens - job.tokens))
