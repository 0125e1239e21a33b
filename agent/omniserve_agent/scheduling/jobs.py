"""The scheduler's nouns: jobs, the stages they pass through, and an index kept by events.

A job is what a policy knows of a request: counts, never token values. The engine moves jobs between
stages with `JobIndex.move`; nothing is rebuilt per iteration.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum, StrEnum, auto
from operator import attrgetter

from omniserve_agent.scheduling.deadlines import Deadlines
from omniserve_agent.scheduling.error_budgets import DEFAULT_OBJECTIVE, Objective


class ServiceClass(StrEnum):
    """The two service classes: latency-sensitive and best-effort."""

    LS = "LS"
    BE = "BE"


class Tier(Enum):
    """Where a request's KV lives and its attention runs."""

    DEVICE = auto()
    HOST = auto()


class Stage(Enum):
    """Where a request is on its way. A request is in exactly one stage."""

    WAITING = auto()  # holds no KV; queued, or preempted and to be recomputed
    SWAPPED = auto()  # LS whose KV was moved to the host; resumes first
    PREFILL = auto()  # KV on the device, more than the last token still to compute
    DECODE = auto()  # KV on the device, one token to compute
    STAGED = auto()  # KV on the host, prompt being computed layer by layer
    BOUNDARY = auto()  # KV on the host, one token (or a draft) to start
    HOPPING = auto()  # KV on the host, rows in flight between layers
    DONE = auto()  # finished or cancelled

    __hash__ = object.__hash__  # members are unique: indices by stage need no hash of their names


STAGES = tuple(Stage)  # quicker to go over than the class
DEVICE_STAGES = (Stage.PREFILL, Stage.DECODE)
HOST_STAGES = (Stage.STAGED, Stage.BOUNDARY, Stage.HOPPING)


@dataclass(slots=True, eq=False)
class Job:
    """One request as a policy sees it. Token counts include tokens still on their way back."""

    handle: int
    service: str
    service_class: ServiceClass
    priority: int
    arrival: int  # order of arrival in this engine
    tokens: int  # prompt and output tokens so far
    max_total_tokens: int  # where its output ends at the latest
    predicted_tokens: int  # where its output is expected to end
    prompt_tokens: int = 0  # of `tokens`; 0: all that it comes with
    computed: int = 0  # tokens whose KV exists
    # LS that waits, of its prompt on the device: tokens of whole blocks, fewer than it has, and how
    # many of these blocks somebody holds. Nothing is kept for it: its admission looks again.
    found_tokens: int = 0
    shared_blocks: int = 0
    stage: Stage = Stage.WAITING
    device_blocks: int = 0
    host_blocks: int = 0
    deadlines: Deadlines | None = None  # LS with an SLO
    objective: Objective = DEFAULT_OBJECTIVE  # of its service, where it has deadlines
    held: bool = False  # its next row needs a token that is still on its way back
    prompt: int | None = None  # names its whole prompt where others may have the same one
    min_share_percent: int = 0  # BE: of the time of iterations, promised to its service
    counted: tuple[int, int] = (0, 0)  # the index's own: what this job adds to its sums
    rank: tuple[int, int] = field(init=False)  # inside a class: higher priority first, then arrival

    def __post_init__(self) -> None:
        self.rank = (-self.priority, self.arrival)
        self.prompt_tokens = self.prompt_tokens or self.tokens

    @property
    def context(self) -> int:
        """Tokens that are computed, or found where it has begun nothing yet."""
        return self.computed or self.found_tokens

    @property
    def remaining(self) -> int:
        """Tokens to compute before the next output token."""
        return self.tokens - (self.computed or self.found_tokens)

    def new_blocks(self, block_tokens: int) -> int:
        """Free device blocks that its admission takes: what nobody holds counts as free."""
        return blocks_for(self.tokens + 1, block_tokens) - self.shared_blocks

    def new_tokens(self, block_tokens: int) -> int:
        """KV that it adds to what is held."""
        return self.tokens - self.shared_blocks * block_tokens


def blocks_for(tokens: int, block_tokens: int) -> int:
    """Blocks that hold this many tokens."""
    return -(-tokens // block_tokens)


_rank = attrgetter("rank")


@dataclass(frozen=True, slots=True)
class DeviceChunk:
    """Consecutive rows of a job whose KV is on the device: one row decodes, more prefill."""

    job: Job
    rows: int


@dataclass
class JobIndex:
    """Jobs by class and stage, each list in rank order; sums over offloaded jobs, kept by events.

    An offloaded job's tokens and blocks change only right before it passes to another stage, so
    that what `add` and `move` note of it stays true until it passes again.
    """

    block_tokens: int = 16
    host_growth_blocks: int = 0  # that BE jobs on the host are still expected to take
    offloaded_tokens: int = 0  # KV of BE jobs on the host that decode
    ls_device_blocks: int | None = None  # LS holds, each once; None: nobody shares, or counts them
    offloaded_prompts: dict[int, int] = field(default_factory=dict)  # theirs: how many have each
    # BE services whose newest job has a promised share: how many of their jobs are in each stage.
    promised: dict[str, dict[Stage, int]] = field(default_factory=dict)
    _lists: dict[tuple[ServiceClass, Stage], list[Job]] = field(
        default_factory=lambda: {(c, s): [] for c in ServiceClass for s in Stage}
    )
    _decoding: dict[ServiceClass, list[DeviceChunk]] = field(
        default_factory=lambda: {c: [] for c in ServiceClass}
    )
    _deadlines: list[Deadlines] = field(default_factory=list)

    def add(self, job: Job) -> None:
        """A new job, in the stage it carries."""
        if job.service_class is ServiceClass.BE and (self.promised or job.min_share_percent):
            self._promise(job)
        self._insert(job)

    def _promise(self, job: Job) -> None:
        if not job.min_share_percent:
            self.promised.pop(job.service, None)
        elif job.service not in self.promised:
            of_all = self.among(ServiceClass.BE, STAGES)
            self.promised[job.service] = Counter(
                j.stage for j in of_all if j.service == job.service
            )

    def move(self, job: Job, stage: Stage) -> None:
        """The job passes to another stage; DONE takes it out of the index."""
        jobs = self._lists[job.service_class, job.stage]
        at = bisect_left(jobs, job.rank, key=_rank)
        del jobs[at]
        if job.stage is Stage.DECODE:
            self._left_decoding(job, at)
        self._count(job, (0, 0))
        if self.promised:
            self._left(job)
        job.stage = stage
        if stage is not Stage.DONE:
            self._insert(job)
        elif self.promised:
            self._forget_promise(job)

    def _left(self, job: Job) -> None:
        stages = self._promised_stages(job)
        if stages is not None:
            stages[job.stage] -= 1

    def _forget_promise(self, job: Job) -> None:
        stages = self._promised_stages(job)
        if stages is not None and not any(stages.values()):
            del self.promised[job.service]

    def _promised_stages(self, job: Job) -> dict[Stage, int] | None:
        return self.promised.get(job.service) if job.service_class is ServiceClass.BE else None

    def _insert(self, job: Job) -> None:
        jobs = self._lists[job.service_class, job.stage]
        at = bisect_right(jobs, job.rank, key=_rank)
        jobs.insert(at, job)
        if self.promised and (stages := self._promised_stages(job)) is not None:
            stages[job.stage] = stages.get(job.stage, 0) + 1
        if job.stage is Stage.DECODE:
            self._decoding[job.service_class].insert(at, DeviceChunk(job, 1))
            if job.deadlines is not None:
                self._deadlines.append(job.deadlines)
        if job.service_class is ServiceClass.BE and job.stage in HOST_STAGES:
            wanted = blocks_for(job.predicted_tokens, self.block_tokens)
            tokens = 0 if job.stage is Stage.STAGED else job.tokens
            self._count(job, (max(0, wanted - job.host_blocks), tokens))

    def _left_decoding(self, job: Job, at: int) -> None:
        del self._decoding[job.service_class][at]
        if job.deadlines is not None:
            self._deadlines.remove(job.deadlines)

    def _count(self, job: Job, new: tuple[int, int]) -> None:
        self.host_growth_blocks += new[0] - job.counted[0]
        self.offloaded_tokens += new[1] - job.counted[1]
        if job.prompt is not None and (change := bool(new[1]) - bool(job.counted[1])):
            left = self.offloaded_prompts.pop(job.prompt, 0) + change
            if left:
                self.offloaded_prompts[job.prompt] = left
        job.counted = new

    @property
    def offloaded_mean(self) -> float:
        """KV tokens of an offloaded job that decodes, on the mean; 0 where there is none."""
        jobs = self.count(ServiceClass.BE, Stage.BOUNDARY, Stage.HOPPING)
        return self.offloaded_tokens / jobs if jobs else 0.0

    def held_once(self, ls_tokens: int) -> int:
        """KV on the device of LS jobs with so many tokens: what several hold is there once."""
        if self.ls_device_blocks is None:
            return ls_tokens
        return min(ls_tokens, self.ls_device_blocks * self.block_tokens)

    def at(self, service_class: ServiceClass, stage: Stage) -> Sequence[Job]:
        """Jobs of one class and stage in rank order; a live view, not to be changed."""
        return self._lists[service_class, stage]

    def decoding(self, service_class: ServiceClass) -> Sequence[DeviceChunk]:
        """The jobs of `at(service_class, Stage.DECODE)` as chunks; a live view as well."""
        return self._decoding[service_class]

    def decode_deadlines(self) -> Sequence[Deadlines]:
        """Of the jobs that decode on the device, in no order; a live view."""
        return self._deadlines

    def among(self, service_class: ServiceClass, stages: Sequence[Stage]) -> Iterator[Job]:
        """Jobs of one class over several stages."""
        for stage in stages:
            yield from self._lists[service_class, stage]

    def only_ls(self) -> JobIndex:
        """A live view in which there is no BE job; not to be changed."""
        return JobIndex(
            block_tokens=self.block_tokens,
            ls_device_blocks=self.ls_device_blocks,
            _lists={k: jobs if k[0] is ServiceClass.LS else [] for k, jobs in self._lists.items()},
            _decoding={**self._decoding, ServiceClass.BE: []},
            _deadlines=self._deadlines,
        )

    def first(self, service_class: ServiceClass) -> Job | None:
        """The job of this class that ranks first over all stages."""
        lists = self._lists
        heads = [jobs[0] for stage in STAGES if (jobs := lists[service_class, stage])]
        return min(heads, key=_rank, default=None)

    def count(self, service_class: ServiceClass, *stages: Stage) -> int:
        """How many jobs of this class are in these stages."""
        lists, total = self._lists, 0
        for stage in stages:
            total += len(lists[service_class, stage])
        return total
