"""Requests of one prompt compute it once: the others wait, and find it then.

Completions of one request (`n`) and batches over one document arrive together. A prefix is found
from where it is complete, so that those who start beside the first would all compute it again.
"""

from __future__ import annotations

from collections.abc import Sequence

from omniserve_agent.scheduling.jobs import Job, JobIndex, ServiceClass, Stage


def under_way(jobs: JobIndex, block_tokens: int) -> set[int]:
    """Prompts of which BE requests still compute at least a block."""
    return {
        job.prompt
        for job in jobs.among(ServiceClass.BE, (Stage.STAGED, Stage.PREFILL))
        if job.prompt is not None and job.remaining > block_tokens
    }


def sharing(waiting: Sequence[Job], prompt: int | None) -> int:
    """How many of these requests wait for this prompt; 1 for one that nobody can share."""
    return max(1, [job.prompt for job in waiting].count(prompt)) if prompt is not None else 1
