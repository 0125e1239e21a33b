"""Whether LS finds device KV: what its prompts may take, and what is kept for the next ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from omniserve_agent.scheduling.jobs import (
    DEVICE_STAGES,
    Job,
    JobIndex,
    ServiceClass,
    Stage,
    blocks_for,
)
from omniserve_agent.scheduling.plan import Caps, Room
from omniserve_agent.scheduling.shared_prompts import under_way
from omniserve_agent.scheduling.traffic import Arrivals

LS, BE = ServiceClass.LS, ServiceClass.BE
ARRIVALS = 2  # LS prompts for which device KV is kept free


class Wanted(NamedTuple):
    """Of LS prompts."""

    rows: int = 0  # of those that are on the device, or find room there once BE has left it
    short: bool = False  # one of them, or the next that may come, does not find it


def arrival_blocks(arrivals: Arrivals, caps: Caps) -> int:
    """For the prompts that may come before BE can make room: two that add KV at its p95, but no
    more than leaves room for one beside them, or a service with long prompts would shut BE out."""
    if not arrivals:
        return 0
    each = blocks_for(arrivals.together.p95_kv + 1, caps.block_tokens)
    return min(ARRIVALS * each, max(0, caps.device_blocks - each))


def wanted(jobs: JobIndex, room: Room, order: Sequence[Job], caps: Caps, kept: int) -> Wanted:
    """LS's prompts are in `order`; `kept`: blocks for those to come. Whoever is swapped out comes
    back first, and a prompt that another request computes is found once it is complete."""
    blocks, swapped = room.device_free_blocks, jobs.at(LS, Stage.SWAPPED)
    blocks += sum([job.device_blocks for job in jobs.among(BE, DEVICE_STAGES)])
    blocks -= sum([job.new_blocks(caps.block_tokens) for job in swapped])
    rows, computed = len(swapped), under_way(jobs, LS) if order else set()
    for job in order:
        if job.stage is Stage.WAITING:
            if job.prompt in computed:
                continue
            if job.prompt is not None:
                computed.add(job.prompt)
            blocks -= job.new_blocks(caps.block_tokens)
            if blocks < 0:
                break
        rows += job.remaining
    return Wanted(min(rows, caps.ls_prefill_rows), blocks < kept)
