"""The simple policy: LS decode, LS prefill, BE prefill, BE decode, in that order, with fixed caps.

It promises order and progress, not latencies: the SLO-driven policy replaces its caps by
predictions and fills iterations through `fill`. BE keeps a small floor of prefill work and join
lanes in every iteration, so that the oldest BE request always progresses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import nsmallest
from typing import TypeVar

from omniserve_agent.scheduling.be_prefill import Allowance, RowLayers
from omniserve_agent.scheduling.jobs import (
    DEVICE_STAGES,
    Job,
    JobIndex,
    ServiceClass,
    Stage,
    Tier,
    blocks_for,
)
from omniserve_agent.scheduling.plan import (
    Admission,
    Caps,
    DeviceChunk,
    Move,
    Plan,
    Room,
    Unlearning,
)
from omniserve_agent.scheduling.shared_prompts import under_way

LS, BE = ServiceClass.LS, ServiceClass.BE
T = TypeVar("T")
PROMOTIONS = 2  # at most so many requests go to the device in one plan: each is a copy
ARRIVAL_PART = 8  # of the device, one is kept free for LS prompts to come where none are foreseen


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


@dataclass
class _Draft:
    """A plan in the making, with what is left of the room and of the caps."""

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


@dataclass(frozen=True)
class FixedCaps(Unlearning):
    """See the module; `caps` are the engine's limits."""

    caps: Caps

    def plan(self, jobs: JobIndex, room: Room, now_s: float) -> Plan:
        """The next iteration under fixed caps."""
        caps = self.caps
        return self.fill(
            jobs,
            room,
            Grant(
                device_rows=caps.max_device_rows,
                ls_prefill_rows=caps.ls_prefill_rows,
                be_prefill=RowLayers(caps),
                join_rows=caps.join_rows,
                entries=caps.join_rows,
                be_host_admissions=caps.be_host_admissions,
            ),
        )

    def fill(self, jobs: JobIndex, room: Room, grant: Grant) -> Plan:
        """The next iteration with what it was granted."""
        draft = _Draft(
            grant=grant,
            device_free=room.device_free_blocks,
            host_uncommitted=room.host_free_blocks - jobs.host_growth_blocks,
            rows_left=grant.device_rows,
        )
        self._ls_decode(jobs, draft)
        self._reclaim_for_growth(jobs, draft)
        self._ls_prefill(jobs, draft)
        if grant.be_rows is not None:  # places that LS prompts did not take are not BE's
            draft.rows_left = min(draft.rows_left, grant.be_rows)
        self._promote(jobs, draft)
        self._be_admissions(jobs, draft)
        rows = self._be_device_prefill(jobs, draft)
        self._be_decode(jobs, draft)
        self._leave_without_rows(jobs, draft)
        return Plan(
            moves=tuple(draft.moves),
            admissions=tuple(draft.admissions),
            device=tuple(draft.device),
            entries=tuple(self._entries(jobs, room, draft)),
            staged=tuple(draft.staged),
            prefill_row_layers=grant.be_prefill.row_layers(
                draft.ls_prefill_rows, rows, draft.staged
            ),
            join_rows=grant.join_rows,
            sweeps=grant.sweeps,
        )

    def growth_reserve(self, jobs: JobIndex) -> int:
        """Device blocks that LS rows will need over the growth horizon."""
        rows = jobs.count(LS, Stage.DECODE, Stage.PREFILL)
        return blocks_for(rows * self.caps.growth_iterations, self.caps.block_tokens)

    def _blocks(self, tokens: int) -> int:
        return blocks_for(tokens, self.caps.block_tokens)

    def _ls_decode(self, jobs: JobIndex, draft: _Draft) -> None:
        chunks: Sequence[DeviceChunk] = jobs.decoding(LS)
        if True in [job.held for job in jobs.at(LS, Stage.DECODE)]:
            chunks = [chunk for chunk in chunks if not chunk.job.held]
        self._add_rows(chunks[: draft.rows_left], draft)

    def _be_decode(self, jobs: JobIndex, draft: _Draft) -> None:
        chunks, most = jobs.decoding(BE), draft.rows_left
        if not chunks or most <= 0:
            return
        if self.caps.be_device_rows is not None:
            most = min(most, self.caps.be_device_rows)
        moving = draft.moving
        rows = [c for c in chunks if not (c.job.held or c.job.handle in moving)]
        self._add_rows([*_first_of(draft.grant.be_first, rows, _chunk_service)[:most]], draft)

    def _add_rows(self, rows: Sequence[DeviceChunk], draft: _Draft) -> None:
        size = self.caps.block_tokens
        draft.device += rows
        draft.rows_left -= len(rows)
        draft.device_free -= sum([(j := c.job).tokens > j.device_blocks * size for c in rows])

    def _reclaim_for_growth(self, jobs: JobIndex, draft: _Draft) -> None:
        """Move BE requests off the device before LS needs their blocks."""
        wanted = self.growth_reserve(jobs)
        swapped = jobs.at(LS, Stage.SWAPPED)
        waiting = swapped or [j for j in self._ls_prompts(jobs, draft) if j.stage is Stage.WAITING]
        if waiting:
            wanted += self._blocks(waiting[0].tokens + 1)
        if draft.device_free >= wanted:
            return
        for job in self._demotable(jobs):
            draft.moves.append(Move(job, Tier.HOST))
            draft.device_free += job.device_blocks
            if draft.device_free >= wanted:
                return

    def _demotable(self, jobs: JobIndex) -> Iterator[Job]:
        """Prompts first; then those that yield least tokens per byte, which are the longest."""
        yield from (job for job in reversed(jobs.at(BE, Stage.PREFILL)) if not job.held)
        resident = [job for job in jobs.at(BE, Stage.DECODE) if not job.held]
        yield from sorted(resident, key=lambda j: (j.predicted_tokens, j.rank), reverse=True)

    def _ls_prompts(self, jobs: JobIndex, draft: _Draft) -> Sequence[Job]:
        if draft.grant.ls_prompts is not None:
            return draft.grant.ls_prompts
        return [*jobs.at(LS, Stage.PREFILL), *jobs.at(LS, Stage.WAITING)]

    def _ls_prefill(self, jobs: JobIndex, draft: _Draft) -> None:
        for job in jobs.at(LS, Stage.SWAPPED):
            self._admit_ls(job, draft)
        prompts = self._ls_prompts(jobs, draft)
        computed = under_way(jobs, LS) if prompts else set()
        for job in prompts:
            if job.stage is Stage.PREFILL:
                self._add_ls_chunk(job, draft)
            elif job.prompt is None or job.prompt not in computed:
                self._admit_ls(job, draft)
                if job.prompt is not None:
                    computed.add(job.prompt)

    def _admit_ls(self, job: Job, draft: _Draft) -> None:
        if draft.ls_left_out:
            return  # in order: nobody overtakes
        needed = self._blocks(job.tokens + 1)
        if needed > draft.device_free or draft.rows_left == 0:
            draft.ls_left_out = True
            return
        draft.admissions.append(Admission(job, Tier.DEVICE))
        draft.device_free -= needed
        self._add_ls_chunk(job, draft)

    def _add_ls_chunk(self, job: Job, draft: _Draft) -> None:
        rows = min(job.remaining, draft.grant.ls_prefill_rows - draft.ls_prefill_rows)
        if rows <= 0 or draft.rows_left == 0 or job.held:
            return
        draft.device.append(DeviceChunk(job, rows))
        draft.ls_prefill_rows += rows
        draft.rows_left -= 1

    def _be_admissions(self, jobs: JobIndex, draft: _Draft) -> None:
        """Staged prefills under way, then waiting BE: the device while there is room, else host."""
        staged = _first_of(draft.grant.be_first, jobs.at(BE, Stage.STAGED), _service)
        draft.staged += draft.grant.be_prefill.together(staged)
        if self.caps.be_host or not jobs.at(BE, Stage.BOUNDARY):  # paused ones come back first
            self._admit_be(jobs, draft)

    def _admit_be(self, jobs: JobIndex, draft: _Draft) -> None:
        prompts = {
            Tier.HOST: jobs.count(BE, Stage.STAGED),
            Tier.DEVICE: jobs.count(BE, Stage.PREFILL),
        }
        computed = under_way(jobs)
        for job in _first_of(draft.grant.be_first, jobs.at(BE, Stage.WAITING), _service):
            if min(prompts.values()) >= self.caps.staged_jobs:
                return
            if job.prompt in computed:
                continue
            tier = self._tier_for(job, jobs, draft)
            if tier is None or prompts[tier] >= self.caps.staged_jobs:
                return
            draft.admissions.append(Admission(job, tier))
            prompts[tier] += 1
            if job.prompt is not None:
                computed.add(job.prompt)

    def _tier_for(self, job: Job, jobs: JobIndex, draft: _Draft) -> Tier | None:
        predicted = self._blocks(max(job.predicted_tokens, job.tokens + 1))
        if self._fits_device(predicted, jobs, draft):
            draft.device_free -= predicted
            return Tier.DEVICE
        if not self.caps.be_host:
            return None
        # The first in rank may take what later ones hold: the engine relieves on its behalf.
        fits = draft.grant.be_host_admissions and predicted <= draft.host_uncommitted
        if fits or jobs.first(BE) is job:
            draft.host_uncommitted -= predicted
            return Tier.HOST
        return None

    def _fits_device(self, blocks: int, jobs: JobIndex, draft: _Draft) -> bool:
        if not self.caps.be_device_residency or draft.rows_left == 0:
            return False
        if draft.ls_left_out:
            return False
        if self.caps.be_device_blocks is not None:
            held = sum(
                max(job.device_blocks, self._blocks(job.predicted_tokens))
                for job in jobs.among(BE, DEVICE_STAGES)
            )
            planned = sum(
                self._blocks(max(a.job.predicted_tokens, a.job.tokens + 1))
                for a in draft.admissions
                if a.job.service_class is BE
            )
            if held + planned + blocks > self.caps.be_device_blocks:
                return False
        arrival = draft.grant.arrival_blocks
        if arrival is None:
            arrival = self.caps.device_blocks // ARRIVAL_PART
        return blocks + self.growth_reserve(jobs) + arrival <= draft.device_free

    def _be_device_prefill(self, jobs: JobIndex, draft: _Draft) -> int:
        """Chunks of BE prompts on the device; their rows."""
        admitted = [a.job for a in draft.admissions if a.tier is Tier.DEVICE]
        ranked = [*jobs.at(BE, Stage.PREFILL), *(j for j in admitted if j.service_class is BE)]
        chosen = _first_of(draft.grant.be_first, ranked, _service)
        if not chosen:
            return 0
        left = most = draft.grant.be_prefill.device_rows(draft.ls_prefill_rows, draft.staged)
        moving = draft.moving
        for job in chosen:
            if draft.rows_left == 0 or left <= 0:
                break
            if job.handle in moving or job.held:
                continue
            chunk = min(job.remaining, left)
            draft.device.append(DeviceChunk(job, chunk))
            draft.rows_left -= 1
            left -= chunk
        return most - left

    def _leave_without_rows(self, jobs: JobIndex, draft: _Draft) -> None:
        """LS takes every row: the first-ranked BE request goes on from the host."""
        if draft.rows_left:
            return
        first = jobs.first(BE)
        if first is not None and first.stage in DEVICE_STAGES:
            planned = first in [chunk.job for chunk in draft.device]
            if not (planned or first.held or first.handle in draft.moving):
                draft.moves.append(Move(first, Tier.HOST))

    def _promote(self, jobs: JobIndex, draft: _Draft) -> None:
        """Offloaded requests go to the device where they fit to their predicted end.

        There each yields a token per iteration whatever its length: the shortest give most tokens
        per byte. They go before requests that wait, which would only be computing prompts.
        """
        if draft.moves or not jobs.at(BE, Stage.BOUNDARY) or not self._fits_device(1, jobs, draft):
            return
        free = [job for job in jobs.at(BE, Stage.BOUNDARY) if not job.held]
        for job in nsmallest(PROMOTIONS, free, key=lambda j: (j.predicted_tokens, j.rank)):
            needed = self._blocks(max(job.predicted_tokens, job.tokens + 1))
            if not self._fits_device(needed, jobs, draft):
                return
            draft.moves.append(Move(job, Tier.DEVICE))
            draft.device_free -= needed
            if draft.rows_left:  # it goes on there at once
                draft.device.append(DeviceChunk(job, 1))
                draft.rows_left -= 1

    def _entries(self, jobs: JobIndex, room: Room, draft: _Draft) -> Iterator[Job]:
        moving = draft.moving
        left = min(draft.grant.entries, room.free_slots) if self.caps.be_host else 0
        for job in _first_of(draft.grant.be_first, jobs.at(BE, Stage.BOUNDARY), _service):
            if left <= 0:
                return
            if job.handle not in moving and not job.held:
                yield job
                left -= 1


def _service(job: Job) -> str:
    return job.service


def _chunk_service(chunk: DeviceChunk) -> str:
    return chunk.job.service


def _first_of(service: str | None, ranked: Sequence[T], of: Callable[[T], str]) -> Sequence[T]:
    """Those of this service before the others, else in the order they have."""
    if service is None:
        return ranked
    return sorted(ranked, key=lambda one: of(one) != service)
