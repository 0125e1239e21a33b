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


def _on_device(jobs: JobIndex, needy: Job) -> Victim | None:
    best_effort = [j for j in jobs.among(ServiceClass.BE, DEVICE_STAGES) if j.device_blocks]
    if needy.service_class is ServiceClass.BE:
        # BE never displaces anybody on the device: it goes on from the host.
        return Victim(needy, Relief.DEMOTE) if needy.stage in DEVICE_STAGES else None
    if best_effort:
        dirty_then_rank = max(best_effort, key=lambda j: (j.host_blocks, j.rank))
        return Victim(dirty_then_rank, Relief.DEMOTE)
    latency = [j for j in jobs.among(ServiceClass.LS, DEVICE_STAGES) if j.device_blocks]
    if not latency:
        return None
    return Victim(max(latency, key=lambda j: j.rank), Relief.SWAP)


def _on_host(jobs: JobIndex, needy: Job) -> Victim | None:
    copies = [j for j in jobs.among(ServiceClass.BE, DEVICE_STAGES) if j.host_blocks]
    if copies:
        return Victim(max(copies, key=lambda j: j.rank), Relief.DROP_COPY)
    first = jobs.first(ServiceClass.BE)
    holders = [j for j in jobs.among(ServiceClass.BE, HOST_STAGES) if j.host_blocks]
    below = [j for j in holders if j is not first and j is not needy]
    if needy.service_class is ServiceClass.BE and needy is not first:
        below = [j for j in below if j.rank > needy.rank]
    if below:
        return Victim(min(below, key=lambda j: j.computed), Relief.RECOMPUTE)
    if needy is first:
        swapped = jobs.at(ServiceClass.LS, Stage.SWAPPED)
        return Victim(swapped[-1], Relief.RECOMPUTE) if swapped else None
    return Victim(needy, Relief.RECOMPUTE) if needy.stage is not Stage.WAITING else None
