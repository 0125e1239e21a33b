"""Why a BE request that waits is not let in now, on the terms of the policy in force.

The words follow the conditions of `FixedCaps`, on which every policy builds, in their order.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from omniserve_agent.scheduling.filling import growth_blocks
from omniserve_agent.scheduling.jobs import (
    DEVICE_STAGES,
    Job,
    JobIndex,
    ServiceClass,
    Stage,
    blocks_for,
)
from omniserve_agent.scheduling.plan import Room, Terms
from omniserve_agent.scheduling.shared_prompts import under_way

LS, BE = ServiceClass.LS, ServiceClass.BE
NEXT = "nothing holds it back: the next iteration may take it"


@dataclass(frozen=True)
class BeQueue:
    """Reasons at a moment. What is the same for all requests is computed once, when first asked."""

    terms: Terms
    jobs: JobIndex
    room: Room

    def why_queued(self, job: Job) -> str:
        """Of a request that waits: its own reason, or that of the first, whom nobody overtakes."""
        if self.terms.never:
            return self.terms.never
        before = self._places.get(job.handle, 0)
        if not before:
            return self._why(job)
        return f"{before} BE requests wait before it; the first of them: {self._why_first}"

    def why_paused(self, job: Job) -> str:
        """Of a request whose KV lies on the host, where BE does not run."""
        device = self._why_not_on_device(self._needed(job))
        return (
            f"it is paused, its KV is on the host and BE runs on the device alone: {device or NEXT}"
        )

    @cached_property
    def _order(self) -> list[Job]:
        """Those that wait for nobody else's prompt; the service that goes first, then by rank."""
        computed = under_way(self.jobs)
        order = [job for job in self.jobs.at(BE, Stage.WAITING) if job.prompt not in computed]
        return sorted(order, key=lambda job: job.service != self.terms.be_first)

    @cached_property
    def _places(self) -> dict[int, int]:
        return {job.handle: place for place, job in enumerate(self._order)}

    @cached_property
    def _why_first(self) -> str:
        return self._why(self._order[0])

    @cached_property
    def _ls_queue(self) -> tuple[int, int]:
        """LS requests that wait, and the blocks they need together."""
        queued = list(self.jobs.among(LS, (Stage.SWAPPED, Stage.WAITING)))
        size = self.terms.caps.block_tokens
        return len(queued), sum(job.new_blocks(size) for job in queued)

    @cached_property
    def _share_taken(self) -> int:
        """Blocks that BE on the device holds or is expected to."""
        size = self.terms.caps.block_tokens
        return sum(
            max(job.device_blocks, blocks_for(job.predicted_tokens, size))
            for job in self.jobs.among(BE, DEVICE_STAGES)
        )

    def _needed(self, job: Job) -> int:
        return blocks_for(max(job.predicted_tokens, job.tokens + 1), self.terms.caps.block_tokens)

    def _why(self, job: Job) -> str:
        """Of the first in order."""
        caps, jobs = self.terms.caps, self.jobs
        if not caps.be_host and (paused := jobs.count(BE, Stage.BOUNDARY)):
            return f"{paused} paused BE requests come back to the device before it"
        device = self._why_not_on_device(self._needed(job))
        if not device:
            computed = jobs.count(BE, Stage.PREFILL)
            before = _prompts_before(computed, "on the device")
            return before if computed >= caps.staged_jobs else NEXT
        if not caps.be_host:
            return device
        host = self._why_not_on_host(job)
        return f"{device}; {host}" if host else NEXT

    def _why_not_on_host(self, job: Job) -> str:
        caps, jobs = self.terms.caps, self.jobs
        free = max(0, self.room.host_free_blocks - jobs.host_growth_blocks)
        if jobs.first(BE) is not job:  # the first of all may always
            if not caps.be_host_admissions:
                return "prompts are computed on the device alone"
            if self._needed(job) > free:
                return f"{free} blocks are free on the host beside the growth of others"
            if not (self.terms.host_pays or job.service == self.terms.be_first):
                return "a prompt for the host yields less than leaving the time to the device"
        staged = jobs.count(BE, Stage.STAGED)
        return _prompts_before(staged, "for the host") if staged >= caps.staged_jobs else ""

    def _why_not_on_device(self, needed: int) -> str:
        caps = self.terms.caps
        if not caps.be_device_residency:
            return "BE is kept off the device"
        queued, blocks = self._ls_queue
        if blocks > self.room.device_free_blocks:
            return f"{queued} LS requests wait for room on the device, and go first"
        rows = queued + self.jobs.count(LS, Stage.DECODE, Stage.PREFILL)
        if rows >= caps.max_device_rows:
            return f"LS takes {rows} rows of the {caps.max_device_rows} of an iteration"
        if self.terms.be_rows == 0:
            return f"beside {rows} rows of LS an iteration has time for no BE row on the device"
        return self._why_no_share(needed) or self._why_no_room(needed, blocks)

    def _why_no_share(self, needed: int) -> str:
        share = self.terms.caps.be_device_blocks
        if share is None or self._share_taken + needed <= share:
            return ""
        return (
            f"it is expected to need {needed} KV blocks on the device, of the {share} that are "
            f"BE's share {self._share_taken} are taken"
        )

    def _why_no_room(self, needed: int, queued: int) -> str:
        """`queued`: blocks for LS that waits."""
        growth = growth_blocks(self.terms.caps, self.jobs)
        free, to_come = self.room.device_free_blocks, self.terms.arrival_blocks
        if needed + queued + growth + to_come <= free:
            return ""
        return (
            f"it is expected to need {needed} KV blocks on the device, {free} are free there, and "
            f"LS is kept {growth} for its growth, {queued} for its queue, {to_come} for requests "
            "to come"
        )


def _prompts_before(count: int, where: str) -> str:
    return f"{count} BE prompts are being computed {where} before it"
