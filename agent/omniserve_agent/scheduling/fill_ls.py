"""LS in an iteration: rows that decode, room on the device for its growth, prompts in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from omniserve_agent.scheduling.filling import Filling, shortest_first
from omniserve_agent.scheduling.jobs import Job, JobIndex, ServiceClass, Stage, Tier
from omniserve_agent.scheduling.plan import Admission, DeviceChunk, Move
from omniserve_agent.scheduling.shared_prompts import under_way

LS, BE = ServiceClass.LS, ServiceClass.BE


def decode(jobs: JobIndex, filling: Filling) -> None:
    """A row of every LS request that decodes."""
    size, chunks = filling.caps.block_tokens, jobs.decoding(LS)
    grow = [j.tokens > j.device_blocks * size for j in jobs.at(LS, Stage.DECODE) if not j.held]
    if len(grow) < len(chunks):
        chunks = [chunk for chunk in chunks if not chunk.job.held]
    filling.take(chunks[: filling.rows_left], sum(grow[: filling.rows_left]))


def reclaim_for_growth(jobs: JobIndex, filling: Filling) -> None:
    """Move BE requests off the device before LS needs their blocks."""
    wanted = filling.growth_reserve(jobs)
    swapped = jobs.at(LS, Stage.SWAPPED)
    waiting = swapped or [j for j in _prompts(jobs, filling) if j.stage is Stage.WAITING]
    if waiting:
        wanted += waiting[0].new_blocks(filling.caps.block_tokens)
    if filling.device_free >= wanted:
        return
    for job in _demotable(jobs):
        filling.moves.append(Move(job, Tier.HOST))
        filling.device_free += job.device_blocks
        if filling.device_free >= wanted:
            return


def _demotable(jobs: JobIndex) -> Iterator[Job]:
    """Prompts first; then, of the lowest priority, those that yield least tokens per byte, which
    are the longest."""
    yield from (job for job in reversed(jobs.at(BE, Stage.PREFILL)) if not job.held)
    resident = [job for job in jobs.at(BE, Stage.DECODE) if not job.held]
    yield from sorted(resident, key=shortest_first, reverse=True)


def prefill(jobs: JobIndex, filling: Filling) -> None:
    """Swapped requests come back first; then prompts, each of those that are the same once."""
    for job in jobs.at(LS, Stage.SWAPPED):
        _admit(job, filling)
    prompts = _prompts(jobs, filling)
    computed = under_way(jobs, LS) if prompts else set()
    for job in prompts:
        if job.stage is Stage.PREFILL:
            _add_chunk(job, filling)
        elif job.prompt is None or job.prompt not in computed:
            _admit(job, filling)
            if job.prompt is not None:
                computed.add(job.prompt)


def _prompts(jobs: JobIndex, filling: Filling) -> Sequence[Job]:
    if filling.grant.ls_prompts is not None:
        return filling.grant.ls_prompts
    return [*jobs.at(LS, Stage.PREFILL), *jobs.at(LS, Stage.WAITING)]


def _admit(job: Job, filling: Filling) -> None:
    if filling.ls_left_out:
        return  # in order: nobody overtakes
    needed = job.new_blocks(filling.caps.block_tokens)
    if needed > filling.device_free or filling.rows_left == 0:
        filling.ls_left_out = True
        return
    filling.admissions.append(Admission(job, Tier.DEVICE))
    filling.device_free -= needed
    _add_chunk(job, filling)


def _add_chunk(job: Job, filling: Filling) -> None:
    rows = min(job.remaining, filling.grant.ls_prefill_rows - filling.ls_prefill_rows)
    if rows <= 0 or filling.rows_left == 0 or job.held:
        return
    filling.device.append(DeviceChunk(job, rows))
    filling.ls_prefill_rows += rows
    filling.rows_left -= 1
