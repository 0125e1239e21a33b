"""The simple policy: LS decode, LS prefill, BE prefill, BE decode, in that order, with fixed caps.

It promises order and progress, not latencies: the SLO-driven policy replaces its caps by
predictions. BE keeps a small floor of prefill work and join lanes in every iteration, so that the
oldest BE request always progresses.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import nsmallest

from omniserve_agent.scheduling.jobs import (
    DEVICE_STAGES,
    HOST_STAGES,
    Job,
    JobIndex,
    ServiceClass,
    Stage,
    Tier,
    blocks_for,
)
from omniserve_agent.scheduling.latency import Work
from omniserve_agent.scheduling.plan import (
    Admission,
    Caps,
    DeviceChunk,
    Move,
    Plan,
    Room,
)

LS, BE = ServiceClass.LS, ServiceClass.BE
PROMOTIONS = 2  # at most so many requests go to the device in one plan: each is a copy


@dataclass
class _Draft:
    """A plan in the making, with what is left of the room and of the caps."""

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
class FixedCaps:
    """See the module; `caps` are the engine's limits."""

    caps: Caps

    def plan(self, jobs: JobIndex, room: Room, now_s: float) -> Plan:
        """The next iteration under fixed caps."""
        draft = _Draft(
            device_free=room.device_free_blocks,
            host_uncommitted=self._host_uncommitted(jobs, room),
            rows_left=self.caps.max_device_rows,
        )
        self._decode(jobs, LS, draft)
        self._reclaim_for_growth(jobs, draft)
        self._ls_prefill(jobs, draft)
        be_rows = self._be_prefill_rows(draft)
        self._promote(jobs, draft)
        self._be_admissions(jobs, draft)
        be_rows -= self._be_device_prefill(jobs, draft, be_rows)
        self._decode(jobs, BE, draft)
        self._leave_without_rows(jobs, draft)
        return Plan(
            moves=tuple(draft.moves),
            admissions=tuple(draft.admissions),
            device=tuple(draft.device),
            entries=tuple(self._entries(jobs, room, draft)),
            staged=tuple(draft.staged),
            prefill_row_layers=be_rows * self.caps.layers if draft.staged else 0,
            join_rows=self.caps.join_rows,
        )

    def arrived(self, job: Job) -> None:
        """Caps are fixed: nothing to learn."""

    def observed(self, work: Work, seconds: float) -> None:
        """Caps are fixed: nothing to learn."""

    def growth_reserve(self, jobs: JobIndex) -> int:
        """Device blocks that LS rows will need over the growth horizon."""
        rows = jobs.count(LS, Stage.DECODE, Stage.PREFILL)
        return blocks_for(rows * self.caps.growth_iterations, self.caps.block_tokens)

    def _blocks(self, tokens: int) -> int:
        return blocks_for(tokens, self.caps.block_tokens)

    def _host_uncommitted(self, jobs: JobIndex, room: Room) -> int:
        """Host blocks that no admitted request is expected to grow into."""
        growth = sum(
            max(0, self._blocks(job.predicted_tokens) - job.host_blocks)
            for job in jobs.among(BE, HOST_STAGES)
        )
        return room.host_free_blocks - growth

    def _decode(self, jobs: JobIndex, service_class: ServiceClass, draft: _Draft) -> None:
        moving, most = draft.moving, draft.rows_left
        if service_class is BE and self.caps.be_device_rows is not None:
            most = min(most, self.caps.be_device_rows)
        floor = draft.rows_left - most
        for job in jobs.at(service_class, Stage.DECODE):
            if draft.rows_left == floor:
                return
            if job.held or job.handle in moving:
                continue
            draft.device.append(DeviceChunk(job, 1))
            draft.rows_left -= 1
            draft.device_free -= self._blocks(job.tokens) > job.device_blocks

    def _reclaim_for_growth(self, jobs: JobIndex, draft: _Draft) -> None:
        """Move BE requests off the device before LS needs their blocks, the last-ranked first."""
        waiting = jobs.at(LS, Stage.SWAPPED) or jobs.at(LS, Stage.WAITING)
        wanted = self.growth_reserve(jobs)
        if waiting:
            wanted += self._blocks(waiting[0].tokens + 1)
        for job in self._demotable(jobs):
            if draft.device_free >= wanted:
                return
            draft.moves.append(Move(job, Tier.HOST))
            draft.device_free += job.device_blocks

    def _demotable(self, jobs: JobIndex) -> Iterator[Job]:
        for stage in (Stage.PREFILL, Stage.DECODE):
            yield from (job for job in reversed(jobs.at(BE, stage)) if not job.held)

    def _ls_prefill(self, jobs: JobIndex, draft: _Draft) -> None:
        for job in jobs.at(LS, Stage.PREFILL):
            self._add_ls_chunk(job, draft)
        for stage in (Stage.SWAPPED, Stage.WAITING):
            for job in jobs.at(LS, stage):
                needed = self._blocks(job.tokens + 1)
                if needed > draft.device_free or draft.rows_left == 0:
                    draft.ls_left_out = True
                    return  # in order: nobody overtakes
                draft.admissions.append(Admission(job, Tier.DEVICE))
                draft.device_free -= needed
                self._add_ls_chunk(job, draft)

    def _add_ls_chunk(self, job: Job, draft: _Draft) -> None:
        rows = min(job.remaining, self.caps.ls_prefill_rows - draft.ls_prefill_rows)
        if rows <= 0 or draft.rows_left == 0 or job.held:
            return
        draft.device.append(DeviceChunk(job, rows))
        draft.ls_prefill_rows += rows
        draft.rows_left -= 1

    def _be_prefill_rows(self, draft: _Draft) -> int:
        left = self.caps.be_prefill_rows - draft.ls_prefill_rows
        return max(left, min(self.caps.be_prefill_floor_rows, self.caps.be_prefill_rows))

    def _be_admissions(self, jobs: JobIndex, draft: _Draft) -> None:
        """Staged prefills under way, then waiting BE: the device while there is room, else host."""
        draft.staged.extend(jobs.at(BE, Stage.STAGED)[: self.caps.staged_jobs])
        if not self.caps.be_host and jobs.at(BE, Stage.BOUNDARY):
            return  # paused requests come back first
        prefilling = jobs.count(BE, Stage.STAGED, Stage.PREFILL)
        for job in jobs.at(BE, Stage.WAITING):
            if prefilling >= self.caps.staged_jobs:
                return
            tier = self._tier_for(job, jobs, draft)
            if tier is None:
                return
            draft.admissions.append(Admission(job, tier))
            prefilling += 1

    def _tier_for(self, job: Job, jobs: JobIndex, draft: _Draft) -> Tier | None:
        predicted = self._blocks(max(job.predicted_tokens, job.tokens + 1))
        if self._fits_device(predicted, jobs, draft):
            draft.device_free -= predicted
            return Tier.DEVICE
        if not self.caps.be_host:
            return None
        # The first in rank may take what later ones hold: the engine relieves on its behalf.
        fits = self.caps.be_host_admissions and predicted <= draft.host_uncommitted
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
        return blocks + self.growth_reserve(jobs) + self._ls_arrival_blocks() <= draft.device_free

    def _ls_arrival_blocks(self) -> int:
        """Kept free for the next LS prompt: an eighth of the pool (a fixed cap, no prediction)."""
        return self.caps.device_blocks // 8

    def _be_device_prefill(self, jobs: JobIndex, draft: _Draft, rows: int) -> int:
        """Chunks of BE prompts on the device; the rows they take of those for all BE prefill.

        Staged prefills keep half, so that neither kind starves the other.
        """
        moving, most = draft.moving, rows - rows // 2 if draft.staged else rows
        left = most
        admitted = [a.job for a in draft.admissions if a.tier is Tier.DEVICE]
        chosen = [*jobs.at(BE, Stage.PREFILL), *(j for j in admitted if j.service_class is BE)]
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
        first = jobs.first(BE)
        if draft.rows_left == 0 and first is not None and first.stage in DEVICE_STAGES:
            planned = any(chunk.job is first for chunk in draft.device)
            if not (planned or first.held or first.handle in draft.moving):
                draft.moves.append(Move(first, Tier.HOST))

    def _promote(self, jobs: JobIndex, draft: _Draft) -> None:
        """Offloaded requests go to the device where they fit to their predicted end.

        There each yields a token per iteration whatever its length: the shortest give most tokens
        per byte. They go before requests that wait, which would only be computing prompts.
        """
        if draft.moves or not jobs.at(BE, Stage.BOUNDARY):
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
        left = min(self.caps.join_rows, room.free_slots) if self.caps.be_host else 0
        for job in jobs.at(BE, Stage.BOUNDARY):
            if left == 0:
                return
            if job.handle not in moving and not job.held:
                yield job
                left -= 1
