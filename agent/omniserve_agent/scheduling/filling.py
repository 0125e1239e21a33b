"""An iteration while policies fill it: what it may hold, what is in it, what is left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from omniserve_agent.scheduling.be_prefill import Allowance
from omniserve_agent.scheduling.jobs import Job, JobIndex, ServiceClass, Stage, blocks_for
from omniserve_agent.scheduling.plan import Admission, Caps, DeviceChunk, Move

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Grant:
    """What one iteration may hold."""

    device_rows: int
    ls_prefill_rows: int
    be_prefill: Allowance
    join_rows: int
    entries: int
    be_host_admissions: bool
    ls_prompts: Sequence[Job] | None = None  # PREFILL and WAITING in order; None: by rank
    be_first: str | None = None  # a BE service whose jobs go before others of their stage
    sweeps: bool = True  # see `Plan`
    arrival_blocks: int | None = None  # kept free of BE for LS prompts to come; None: a fixed part
    be_rows: int | None = None  # of BE jobs on the device; None: what LS leaves of `device_rows`
    spare_lanes: int = 0  # see `Plan`
    first_leaves: bool = True  # the first BE request goes on from the host where it has no row


def growth_blocks(caps: Caps, jobs: JobIndex) -> int:
    """Device blocks that LS rows will need over the growth horizon."""
    rows = jobs.count(ServiceClass.LS, Stage.DECODE, Stage.PREFILL)
    return blocks_for(rows * caps.growth_iterations, caps.block_tokens)


@dataclass
class Filling:
    """A plan in the making, with what is left of the room and of the caps."""

    caps: Caps
    grant: Grant
    device_free: int
    host_uncommitted: int
    rows_left: int
    moves: list[Move] = field(default_factory=list)
    admissions: list[Admission] = field(default_factory=list)
    device: list[DeviceChunk] = field(default_factory=list)
    staged: list[Job] = field(default_factory=list)
    ls_prefill_rows: int = 0
    ls_left_out: bool = False  # an LS request finds no room on the device

    @property
    def moving(self) -> set[int]:
        """Handles of jobs that change their tier."""
        return {move.job.handle for move in self.moves}

    def blocks(self, tokens: int) -> int:
        """KV blocks that hold this many tokens."""
        return blocks_for(tokens, self.caps.block_tokens)

    def growth_reserve(self, jobs: JobIndex) -> int:
        """See `growth_blocks`."""
        return growth_blocks(self.caps, jobs)

    def add_rows(self, rows: Sequence[DeviceChunk]) -> None:
        """Rows that decode, and the blocks that some of them begin."""
        size = self.caps.block_tokens
        grow = [(job := chunk.job).tokens > job.device_blocks * size for chunk in rows]
        self.take(rows, sum(grow))

    def take(self, rows: Sequence[DeviceChunk], blocks: int) -> None:
        """Rows that decode and begin so many blocks."""
        self.device += rows
        self.rows_left -= len(rows)
        self.device_free -= blocks


def shortest_first(job: Job) -> tuple[int, int, int]:
    """Order of BE requests for places on the device: by priority, then by predicted length."""
    return job.rank[0], job.predicted_tokens, job.arrival


def by_service(job: Job) -> str:
    """For `first_of`."""
    return job.service


def by_chunk_service(chunk: DeviceChunk) -> str:
    """For `first_of`."""
    return chunk.job.service


def first_of(service: str | None, ranked: Sequence[T], of: Callable[[T], str]) -> Sequence[T]:
    """Those of this service before the others, else in the order they have."""
    if service is None:
        return ranked
    return sorted(ranked, key=lambda one: of(one) != service)
