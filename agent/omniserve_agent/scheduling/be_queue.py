"""Why a BE request that waits is not let in now, on the terms of the policy in force.

The words follow the conditions of `FixedCaps`, on which every policy builds, in their order.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from omniserve_agent.scheduling.fixed_caps import FixedCaps
from omniserve_agent.scheduling.jobs import (
    DEVICE_STAGES,
    Job,
    JobIndex,
    ServiceClass,
    Stage,
    blocks_for,
)
from omniserve_agent.scheduling.plan import Caps, Room, Terms
from omniserve_agent.scheduling.shared_prompts import under_way

LS, BE = ServiceClass.LS, ServiceClass.BE
NEXT = "nothing holds it back: the next iteration may take it"


def why_queued(terms: Terms, jobs: JobIndex, room: Room, job: Job) -> str:
    """Of a request that waits: its own reason, or that of the first, whom nobody overtakes."""
    if terms.never:
        return terms.never
    order = _in_order(terms, jobs)
    ahead = list(takewhile(lambda other: other is not job, order)) if job in order else []
    if not ahead:
        return _why(terms, jobs, room, job)
    first = _why(terms, jobs, room, ahead[0])
    return f"{len(ahead)} BE requests wait before it; the first of them: {first}"


def why_paused(terms: Terms, jobs: JobIndex, room: Room, job: Job) -> str:
    """Of a request whose KV lies on the host, where BE does not run."""
    device = _why_not_on_device(terms, jobs, room, _needed(terms.caps, job))
    return f"it is paused, its KV is on the host and BE runs on the device alone: {device or NEXT}"


def _in_order(terms: Terms, jobs: JobIndex) -> Sequence[Job]:
    """Those that wait for nobody else's prompt; the service that goes first, then by rank."""
    computed = under_way(jobs)
    order = [job for job in jobs.at(BE, Stage.WAITING) if job.prompt not in computed]
    return sorted(order, key=lambda job: job.service != terms.be_first)


def _needed(caps: Caps, job: Job) -> int:
    return blocks_for(max(job.predicted_tokens, job.tokens + 1), caps.block_tokens)


def _why(terms: Terms, jobs: JobIndex, room: Room, job: Job) -> str:
    """Of the first in order."""
    caps = terms.caps
    if not caps.be_host and (paused := jobs.count(BE, Stage.BOUNDARY)):
        return f"{paused} paused BE requests come back to the device before it"
    device = _why_not_on_device(terms, jobs, room, _needed(caps, job))
    if not device:
        computed = jobs.count(BE, Stage.PREFILL)
        return _prompts_before(computed, "on the device") if computed >= caps.staged_jobs else NEXT
    if not caps.be_host:
        return device
    host = _why_not_on_host(terms, jobs, room, job)
    return f"{device}; {host}" if host else NEXT


def _prompts_before(count: int, where: str) -> str:
    return f"{count} BE prompts are being computed {where} before it"


def _why_not_on_host(terms: Terms, jobs: JobIndex, room: Room, job: Job) -> str:
    caps, needed = terms.caps, _needed(terms.caps, job)
    free = max(0, room.host_free_blocks - jobs.host_growth_blocks)
    if jobs.first(BE) is not job:  # the first of all may always
        if not caps.be_host_admissions:
            return "prompts are computed on the device alone"
        if needed > free:
            return f"{free} blocks are free on the host beside the growth of others"
        if not terms.host_pays:
            return "a prompt for the host yields less than leaving the time to the device"
    staged = jobs.count(BE, Stage.STAGED)
    return _prompts_before(staged, "for the host") if staged >= caps.staged_jobs else ""


def _why_not_on_device(terms: Terms, jobs: JobIndex, room: Room, needed: int) -> str:
    caps = terms.caps
    if not caps.be_device_residency:
        return "BE is kept off the device"
    queued = [*jobs.at(LS, Stage.SWAPPED), *jobs.at(LS, Stage.WAITING)]
    first = sum(blocks_for(job.tokens + 1, caps.block_tokens) for job in queued)
    if first > room.device_free_blocks:
        return f"{len(queued)} LS requests wait for room on the device, and go first"
    rows = len(queued) + jobs.count(LS, Stage.DECODE, Stage.PREFILL)
    if rows >= caps.max_device_rows:
        return f"LS takes {rows} rows of the {caps.max_device_rows} of an iteration"
    if terms.be_rows == 0:
        return f"beside {rows} rows of LS an iteration has time for no BE row on the device"
    return _why_no_share(caps, jobs, needed) or _why_no_room(terms, jobs, room, needed, first)


def _why_no_share(caps: Caps, jobs: JobIndex, needed: int) -> str:
    if (share := caps.be_device_blocks) is None:
        return ""
    held = sum(
        max(job.device_blocks, blocks_for(job.predicted_tokens, caps.block_tokens))
        for job in jobs.among(BE, DEVICE_STAGES)
    )
    if held + needed <= share:
        return ""
    return (
        f"it is expected to need {needed} KV blocks on the device, of the {share} that are BE's "
        f"share {held} are taken"
    )


def _why_no_room(terms: Terms, jobs: JobIndex, room: Room, needed: int, queued: int) -> str:
    """`queued`: blocks for LS that waits."""
    growth, free = FixedCaps(terms.caps).growth_reserve(jobs), room.device_free_blocks
    if needed + queued + growth + terms.arrival_blocks <= free:
        return ""
    return (
        f"it is expected to need {needed} KV blocks on the device, {free} are free there, and LS "
        f"is kept {growth} for its growth, {queued} for its queue, {terms.arrival_blocks} for "
        "requests to come"
    )
