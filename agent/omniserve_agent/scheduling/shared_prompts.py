"""Requests of one prompt compute it once: the others wait, and find it then.

Completions of one request (`n`) and batches over one document arrive together. A prefix is found
from where it is complete, so that those who start beside the first would all compute it again.
"""

from __future__ import annotations

from collections.abc import Iterable

from omniserve_agent.scheduling.jobs import Job, JobIndex, ServiceClass, Stage

BE = ServiceClass.BE
LOOK_AHEAD = 64  # requests that wait, the first in rank


def under_way(jobs: JobIndex, service_class: ServiceClass = BE) -> set[int]:
    """Prompts of which requests of the class still compute at least a block."""
    return {
        job.prompt
        for job in jobs.among(service_class, (Stage.STAGED, Stage.PREFILL))
        if job.prompt is not None and job.remaining > jobs.block_tokens
    }


def rows_once(prompts: Iterable[Job], block_tokens: int) -> list[int]:
    """Rows that each computes where those of one prompt compute it once, and a last block each."""
    rows, seen = [], set[int]()
    for job in prompts:
        shared = job.prompt in seen
        rows.append(min(job.remaining, block_tokens) if shared else job.remaining)
        if job.prompt is not None:
            seen.add(job.prompt)
    return rows


def next_to_compute(jobs: JobIndex) -> list[Job]:
    """The first BE request that waits for a prompt nobody computes yet, and all others that wait
    for the same one; none where there is no such request."""
    busy = under_way(jobs)
    waiting = [j for j in jobs.at(BE, Stage.WAITING)[:LOOK_AHEAD] if j.prompt not in busy]
    if not waiting or waiting[0].prompt is None:
        return waiting[:1]
    return [job for job in waiting if job.prompt == waiting[0].prompt]
