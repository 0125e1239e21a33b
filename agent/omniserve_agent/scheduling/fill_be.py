"""BE in an iteration: chunks of prompts and rows that decode on the device, entries to the host."""

from __future__ import annotations

from collections.abc import Iterator

from omniserve_agent.scheduling.filling import Filling, by_chunk_service, by_service, first_of
from omniserve_agent.scheduling.jobs import DEVICE_STAGES, Job, JobIndex, ServiceClass, Stage, Tier
from omniserve_agent.scheduling.plan import DeviceChunk, Move, Room

BE = ServiceClass.BE


def device_prefill(jobs: JobIndex, filling: Filling) -> int:
    """Chunks of BE prompts on the device; their rows."""
    admitted = [a.job for a in filling.admissions if a.tier is Tier.DEVICE]
    ranked = [*jobs.at(BE, Stage.PREFILL), *(j for j in admitted if j.service_class is BE)]
    chosen = first_of(filling.grant.be_first, ranked, by_service)
    if not chosen:
        return 0
    moving = filling.moving
    ready = [job for job in chosen if not (job.handle in moving or job.held)]
    wanted, allowed = sum([job.remaining for job in ready]), filling.grant.be_prefill
    left = most = allowed.device_rows(filling.ls_prefill_rows, filling.staged, wanted)
    for job in ready:
        if filling.rows_left == 0 or left <= 0:
            break
        chunk = min(job.remaining, left)
        filling.device.append(DeviceChunk(job, chunk))
        filling.rows_left -= 1
        left -= chunk
    return most - left


def decode(jobs: JobIndex, filling: Filling) -> None:
    """Rows of BE requests on the device, as far as rows are left."""
    chunks, most = jobs.decoding(BE), filling.rows_left
    if not chunks or most <= 0:
        return
    if filling.caps.be_device_rows is not None:
        most = min(most, filling.caps.be_device_rows)
    moving = filling.moving
    rows = [c for c in chunks if not (c.job.held or c.job.handle in moving)]
    filling.add_rows([*first_of(filling.grant.be_first, rows, by_chunk_service)[:most]])


def leave_without_rows(jobs: JobIndex, filling: Filling) -> None:
    """LS takes every row: the first-ranked BE request goes on from the host."""
    if filling.rows_left or not filling.grant.first_leaves:
        return
    first = jobs.first(BE)
    if first is not None and first.stage in DEVICE_STAGES:
        planned = first in [chunk.job for chunk in filling.device]
        if not (planned or first.held or first.handle in filling.moving):
            filling.moves.append(Move(first, Tier.HOST))


def entries(jobs: JobIndex, room: Room, filling: Filling) -> Iterator[Job]:
    """Offloaded requests that start a token at layer 0, as far as slots are free."""
    moving = filling.moving
    left = min(filling.grant.entries, room.free_slots) if filling.caps.be_host else 0
    for job in first_of(filling.grant.be_first, jobs.at(BE, Stage.BOUNDARY), by_service):
        if left <= 0:
            return
        if job.handle not in moving and not job.held:
            yield job
            left -= 1
