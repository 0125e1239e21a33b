"""The scheduler's nouns: jobs, the stages they pass through, and an index kept by events.

A job is what a policy knows of a request: counts, never token values. The engine moves jobs between
stages with `JobIndex.move`; nothing is rebuilt per iteration.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum, StrEnum, auto

from omniserve_agent.scheduling.deadlines import Deadlines


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
    computed: int = 0  # tokens whose KV exists
    stage: Stage = Stage.WAITING
    device_blocks: int = 0
    host_blocks: int = 0
    deadlines: Deadlines | None = None  # LS with an SLO
    held: bool = False  # its next row needs a token that is still on its way back

    @property
    def rank(self) -> tuple[int, int]:
        """Order inside a class: higher priority first, then arrival."""
        return (-self.priority, self.arrival)

    @property
    def remaining(self) -> int:
        """Tokens to compute before the next output token."""
        return self.tokens - self.computed


def blocks_for(tokens: int, block_tokens: int) -> int:
    """Blocks that hold this many tokens."""
    return -(-tokens // block_tokens)


def _rank(job: Job) -> tuple[int, int]:
    return job.rank


@dataclass
class JobIndex:
    """Jobs by class and stage, each list in rank order."""

    _lists: dict[tuple[ServiceClass, Stage], list[Job]] = field(
        default_factory=lambda: {(c, s): [] for c in ServiceClass for s in Stage}
    )

    def add(self, job: Job) -> None:
        """A new job, in the stage it carries."""
        insort(self._lists[job.service_class, job.stage], job, key=_rank)

    def move(self, job: Job, stage: Stage) -> None:
        """The job passes to another stage; DONE takes it out of the index."""
        jobs = self._lists[job.service_class, job.stage]
        del jobs[bisect_left(jobs, job.rank, key=_rank)]
        job.stage = stage
        if stage is not Stage.DONE:
            insort(self._lists[job.service_class, stage], job, key=_rank)

    def at(self, service_class: ServiceClass, stage: Stage) -> Sequence[Job]:
        """Jobs of one class and stage in rank order; a live view, not to be changed."""
        return self._lists[service_class, stage]

    def among(self, service_class: ServiceClass, stages: Sequence[Stage]) -> Iterator[Job]:
        """Jobs of one class over several stages."""
        for stage in stages:
            yield from self._lists[service_class, stage]

    def only_ls(self) -> JobIndex:
        """A live view in which there is no BE job; not to be changed."""
        return JobIndex(
            {key: jobs if key[0] is ServiceClass.LS else [] for key, jobs in self._lists.items()}
        )

    def first(self, service_class: ServiceClass) -> Job | None:
        """The job of this class that ranks first over all stages."""
        heads = (jobs[0] for (c, _), jobs in self._lists.items() if c is service_class and jobs)
        return min(heads, key=_rank, default=None)

    def count(self, service_class: ServiceClass, *stages: Stage) -> int:
        """How many jobs of this class are in these stages."""
        return sum(len(self._lists[service_class, stage]) for stage in stages)
