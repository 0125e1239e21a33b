"""Who gives way when a tier has no free block. Pure; the engine carries the answer out and retries.

Order under LS pressure on the device: BE requests leave for the host, the cleanest and last-ranked
first; then the last-ranked LS request is preempted. On the host: clean copies go, then the request
that is cheapest to resume; never the first-ranked BE request, so that it always progresses.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from omniserve_agent.scheduling.jobs import (
    DEVICE_STAGES,
    HOST_STAGES,
    Job,
    JobIndex,
    ServiceClass,
    Stage,
    Tier,
)

LS, BE = ServiceClass.LS, ServiceClass.BE


class Relief(Enum):
    """What the victim does."""

    DEMOTE = auto()  # BE: KV to the host
    DROP_COPY = auto()  # BE on the device: forget the host copy, the device has all
    SWAP = auto()  # LS: KV to the host, resumes first
    RECOMPUTE = auto()  # drop all KV; computed again later from prompt and output


@dataclass(frozen=True, slots=True)
class Victim:
    """One step of relief."""

    job: Job
    relief: Relief


def victim(jobs: JobIndex, tier: Tier, needy: Job) -> Victim | None:
    """Who gives way in `tier` for `needy`; `needy` itself when nobody ranks below it.

    None: nothing can be relieved now (only work in flight holds blocks); try again later.
    """
    return _on_device(jobs, needy) if tier is Tier.DEVICE else _on_host(jobs, needy)


def yielding_blocks(jobs: JobIndex, needy: Job) -> int:
    """Host blocks that others would give up for `needy` one after the other, at most."""
    jobs_below = [*_copies(jobs, needy), *_below(jobs, needy)]
    if needy is jobs.first(BE):
        jobs_below += jobs.at(LS, Stage.SWAPPED)
    return sum(job.host_blocks for job in jobs_below)


def _on_device(jobs: JobIndex, needy: Job) -> Victim | None:
    if needy.service_class is BE:
        # BE never displaces anybody on the device: it goes on from the host.
        return Victim(needy, Relief.DEMOTE) if needy.stage in DEVICE_STAGES else None
    best_effort = [j for j in jobs.among(BE, DEVICE_STAGES) if j.device_blocks]
    if best_effort:
        cleanest = max(best_effort, key=lambda j: (j.host_blocks - j.device_blocks, j.rank))
        return Victim(cleanest, Relief.DEMOTE)
    # Nobody is preempted for one that ranks below it.
    latency = [j for j in jobs.among(LS, DEVICE_STAGES) if j.device_blocks and j.rank >= needy.rank]
    if not latency:
        return None
    return Victim(max(latency, key=lambda j: j.rank), Relief.SWAP)


def _on_host(jobs: JobIndex, needy: Job) -> Victim | None:
    copies = _copies(jobs, needy)
    if copies:
        return Victim(max(copies, key=lambda j: j.rank), Relief.DROP_COPY)
    below = _below(jobs, needy)
    if below:
        return Victim(min(below, key=lambda j: j.computed), Relief.RECOMPUTE)
    if needy is jobs.first(BE):
        swapped = jobs.at(LS, Stage.SWAPPED)
        return Victim(swapped[-1], Relief.RECOMPUTE) if swapped else None
    return Victim(needy, Relief.RECOMPUTE) if needy.stage is not Stage.WAITING else None


def _copies(jobs: JobIndex, needy: Job) -> list[Job]:
    """Requests on the device whose host copy can go; not that of one that is about to need it."""
    return [j for j in jobs.among(BE, DEVICE_STAGES) if j.host_blocks and j is not needy]


def _below(jobs: JobIndex, needy: Job) -> list[Job]:
    """BE requests on the host that give way to `needy`.

    One that leaves the device needs blocks now: rows in flight would give theirs back too late.
    """
    first = jobs.first(BE)
    now = needy.stage in DEVICE_STAGES
    holders = jobs.among(BE, (Stage.STAGED, Stage.BOUNDARY) if now else HOST_STAGES)
    below = [j for j in holders if j.host_blocks and j is not first and j is not needy]
    if needy.service_class is LS or needy is first:
        return below
    return [j for j in below if j.rank > needy.rank]
