"""Where BE requests' KV goes: the device while there is room, else the host."""

from __future__ import annotations

from heapq import nsmallest

from omniserve_agent.scheduling.filling import (
    Filling,
    by_service,
    first_of,
    growth_blocks,
    shortest_first,
)
from omniserve_agent.scheduling.jobs import (
    DEVICE_STAGES,
    Job,
    JobIndex,
    ServiceClass,
    Stage,
    Tier,
    blocks_for,
)
from omniserve_agent.scheduling.plan import Admission, Caps, DeviceChunk, Move, Room
from omniserve_agent.scheduling.shared_prompts import under_way

BE = ServiceClass.BE
PROMOTIONS = 2  # at most so many requests go to the device in one plan: each is a copy
ARRIVAL_PART = 8  # of the device, one is kept free for LS prompts to come where none are foreseen


def coming(jobs: JobIndex, caps: Caps, room: Room, arrival_blocks: int) -> int:
    """How many offloaded requests `promote` may take, as far as KV goes."""
    boundary = jobs.at(BE, Stage.BOUNDARY)
    free = room.device_free_blocks - growth_blocks(caps, jobs) - arrival_blocks
    if not boundary or free <= 0 or not caps.be_device_residency:
        return 0
    needed = min([blocks_for(job.predicted_tokens, caps.block_tokens) for job in boundary])
    return min(PROMOTIONS, len(boundary)) if needed <= free else 0


def promote(jobs: JobIndex, filling: Filling) -> None:
    """Offloaded requests go to the device where they fit to their predicted end.

    There each yields a token per iteration whatever its length: of those that rank alike the
    shortest give most tokens per byte. They go before requests that wait, which would only be
    computing prompts, but not before those that are there: each has its row first.
    """
    if filling.moves or not jobs.at(BE, Stage.BOUNDARY) or not _fits_device(1, jobs, filling):
        return
    rows = _rows(jobs, filling)
    free = [job for job in jobs.at(BE, Stage.BOUNDARY) if not job.held]
    for job in nsmallest(min(PROMOTIONS, rows), free, key=shortest_first):
        needed = filling.blocks(max(job.predicted_tokens, job.tokens + 1))
        if not _fits_device(needed, jobs, filling):
            return
        filling.moves.append(Move(job, Tier.DEVICE))
        filling.device_free -= needed
        filling.device.append(DeviceChunk(job, 1))  # it goes on there at once
        filling.rows_left -= 1


def admit(jobs: JobIndex, filling: Filling) -> None:
    """Staged prefills under way, then waiting BE: the device while there is room, else host."""
    staged = first_of(filling.grant.be_first, jobs.at(BE, Stage.STAGED), by_service)
    filling.staged += filling.grant.be_prefill.together(staged)
    if filling.caps.be_host or not jobs.at(BE, Stage.BOUNDARY):  # paused ones come back first
        _admit_waiting(jobs, filling)


def _admit_waiting(jobs: JobIndex, filling: Filling) -> None:
    prompts = {
        Tier.HOST: jobs.count(BE, Stage.STAGED),
        Tier.DEVICE: jobs.count(BE, Stage.PREFILL),
    }
    computed = under_way(jobs)
    for job in first_of(filling.grant.be_first, jobs.at(BE, Stage.WAITING), by_service):
        if min(prompts.values()) >= filling.caps.staged_jobs:
            return
        if job.prompt in computed:
            continue
        tier = _tier_for(job, jobs, filling)
        if tier is None or prompts[tier] >= filling.caps.staged_jobs:
            return
        filling.admissions.append(Admission(job, tier))
        prompts[tier] += 1
        if job.prompt is not None:
            computed.add(job.prompt)


def _tier_for(job: Job, jobs: JobIndex, filling: Filling) -> Tier | None:
    predicted = filling.blocks(max(job.predicted_tokens, job.tokens + 1))
    if _fits_device(predicted, jobs, filling):
        filling.device_free -= predicted
        return Tier.DEVICE
    if not filling.caps.be_host:
        return None
    # The first in rank may take what later ones hold: the engine relieves on its behalf. Who is
    # owed a share of the time gets it on the host, worth it or not.
    pays = filling.grant.be_host_admissions or job.service == filling.grant.be_first
    pays = pays and filling.caps.be_host_admissions
    fits = pays and predicted <= filling.host_uncommitted
    if fits or jobs.first(BE) is job:
        filling.host_uncommitted -= predicted
        return Tier.HOST
    return None


def _fits_device(blocks: int, jobs: JobIndex, filling: Filling) -> bool:
    if not filling.caps.be_device_residency or _rows(jobs, filling) <= 0:
        return False
    if filling.ls_left_out or _exceeds_be_part(blocks, jobs, filling):
        return False
    arrival = filling.grant.arrival_blocks
    if arrival is None:
        arrival = filling.caps.device_blocks // ARRIVAL_PART
    return blocks + filling.growth_reserve(jobs) + arrival <= filling.device_free


def _rows(jobs: JobIndex, filling: Filling) -> int:
    """Those that BE requests which come to the device may have: all that are there have theirs."""
    return filling.rows_left - jobs.count(BE, Stage.DECODE)


def _exceeds_be_part(blocks: int, jobs: JobIndex, filling: Filling) -> bool:
    """Whether BE would hold more of the device than a fixed part, where there is one."""
    if filling.caps.be_device_blocks is None:
        return False
    held = sum(
        max(job.device_blocks, filling.blocks(job.predicted_tokens))
        for job in jobs.among(BE, DEVICE_STAGES)
    )
    planned = sum(
        filling.blocks(max(a.job.predicted_tokens, a.job.tokens + 1))
        for a in filling.admissions
        if a.job.service_class is BE
    )
    return held + planned + blocks > filling.caps.be_device_blocks
