"""Why a request waits, in one sentence with figures; computed when somebody asks."""

from __future__ import annotations

from omniserve_agent.scheduling.jobs import (
    DEVICE_STAGES,
    Job,
    JobIndex,
    ServiceClass,
    Stage,
    blocks_for,
)
from omniserve_agent.scheduling.plan import Caps, PolicyState, Room
from omniserve_agent.scheduling.shared_prompts import under_way

LS, BE = ServiceClass.LS, ServiceClass.BE


def explain(jobs: JobIndex, room: Room, caps: Caps, state: PolicyState | None, job: Job) -> str:
    """What `job` waits for now; empty when it waits for nothing."""
    if job.stage in (Stage.WAITING, Stage.SWAPPED):
        return _ls(jobs, room, caps, job) if job.service_class is LS else _be(jobs, room, caps, job)
    if job.stage is Stage.STAGED:
        return f"its prompt is computed with what LS leaves{_slack(state)}"
    if job.stage is Stage.BOUNDARY:
        queue = jobs.at(BE, Stage.BOUNDARY)
        if room.free_slots < len(queue):
            return f"{room.free_slots} slots are free and {len(queue)} rows want one"
    return ""


def waits(jobs: JobIndex, room: Room, caps: Caps, state: PolicyState | None) -> dict[str, str]:
    """Per service, why its first waiting request waits."""
    found: dict[str, str] = {}
    for service_class in ServiceClass:
        for stage in (Stage.SWAPPED, Stage.WAITING, Stage.STAGED, Stage.BOUNDARY):
            for job in jobs.at(service_class, stage):
                if job.service not in found and (why := explain(jobs, room, caps, state, job)):
                    found[job.service] = why
    return found


def _ls(jobs: JobIndex, room: Room, caps: Caps, job: Job) -> str:
    needed = blocks_for(job.tokens + 1, caps.block_tokens)
    held = sum(j.device_blocks for j in jobs.among(BE, DEVICE_STAGES))
    if needed > room.device_free_blocks + held:
        return (
            f"it needs {needed} KV blocks on the device, {room.device_free_blocks} are free and "
            f"BE holds {held}; LS requests that run must end first"
        )
    if needed > room.device_free_blocks:
        return f"BE leaves the device for it: {needed} KV blocks needed, {held} held by BE"
    ahead = [j for j in jobs.among(LS, (Stage.PREFILL, Stage.WAITING)) if j is not job]
    rows = sum(j.remaining for j in ahead)
    return f"{len(ahead)} LS prompts with {rows} rows share the prefill with it"


def _be(jobs: JobIndex, room: Room, caps: Caps, job: Job) -> str:
    if job.prompt in under_way(jobs):
        return "another request computes the same prompt: it is found once it is complete"
    staged, chunked = jobs.count(BE, Stage.STAGED), jobs.count(BE, Stage.PREFILL)
    if max(staged, chunked) >= caps.staged_jobs:
        return f"{staged + chunked} BE prompts are being computed before it"
    needed = blocks_for(max(job.predicted_tokens, job.tokens + 1), caps.block_tokens)
    free = room.host_free_blocks - jobs.host_growth_blocks
    if needed > free:
        return (
            f"it is expected to need {needed} KV blocks; {room.device_free_blocks} are free on the "
            f"device and {max(0, free)} on the host beside the growth of others"
        )
    return (
        f"there is no room of {needed} KV blocks on the device, and a prompt for the host yields "
        "less than leaving the time to the device"
    )


def _slack(state: PolicyState | None) -> str:
    if state is None:
        return ""
    return (
        f": {1e3 * max(0.0, state.budget_s - state.ls_s):.1f} ms of an iteration, LS itself takes "
        f"{1e3 * state.ls_s:.1f} ms"
    )
