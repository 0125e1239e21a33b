"""Why a request waits, in one sentence with figures; computed when somebody asks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from omniserve_agent.scheduling.admission import Verdict
from omniserve_agent.scheduling.jobs import (
    DEVICE_STAGES,
    Job,
    JobIndex,
    ServiceClass,
    Stage,
    blocks_for,
)
from omniserve_agent.scheduling.plan import Caps, Plan, PolicyState, Room
from omniserve_agent.scheduling.shared_prompts import under_way

LS, BE = ServiceClass.LS, ServiceClass.BE
QUEUED = (Stage.SWAPPED, Stage.WAITING)
SAME_PROMPT = "another request computes the same prompt: it is found once it is complete"
UNDER_WAY = (Stage.PREFILL, Stage.STAGED, Stage.BOUNDARY, Stage.DECODE, Stage.HOPPING)


@dataclass(frozen=True, slots=True)
class Moment:
    """What an answer is made of. `plan` is the last one; None: there was none yet."""

    jobs: JobIndex
    room: Room
    caps: Caps
    state: PolicyState | None = None
    plan: Plan | None = None
    rows: dict[int, int] = field(init=False)  # of the plan on the device, by handle

    def __post_init__(self) -> None:
        chunks = self.plan.device if self.plan is not None else ()
        object.__setattr__(self, "rows", {chunk.job.handle: chunk.rows for chunk in chunks})


def explain(now: Moment, job: Job) -> str:
    """What `job` waits for now; empty when it waits for nothing."""
    if job.held:
        return "its last token is on its way back from the device"
    match job.stage:
        case Stage.WAITING | Stage.SWAPPED:
            of_class = _ls if job.service_class is LS else _be
            return of_class(now.jobs, now.room, now.caps, job)
        case Stage.PREFILL:
            return _prefill(now, job)
        case Stage.STAGED:
            return f"its prompt is computed with what LS leaves{_slack(now.state)}"
        case Stage.BOUNDARY:
            return _boundary(now)
        case Stage.DECODE:
            return "" if now.plan is None or job.handle in now.rows else _without_a_row(now, job)
        case Stage.HOPPING:
            return _between_layers(now)
    return ""


def waits(now: Moment, held_back: Mapping[str, str]) -> dict[str, str]:
    """Per service, why its first waiting request waits: one that queues, else one that admission
    holds back (`held_back`, by service), else one whose next token takes its time."""
    return {**_firsts(now, UNDER_WAY), **held_back, **_firsts(now, QUEUED)}


def held(before: int, first: Verdict) -> str:
    """Why a request waits that admission holds back behind others; the verdict on the first."""
    reason = "the next iteration takes it" if first.admitted else first.reason
    if not before:
        return f"admission holds it back: {reason}"
    return f"admission holds it back behind {before} others; the first of them: {reason}"


def _firsts(now: Moment, stages: tuple[Stage, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for service_class in ServiceClass:
        for job in now.jobs.among(service_class, stages):
            if job.service not in found and (why := explain(now, job)):
                found[job.service] = why
    return found


def _prefill(now: Moment, job: Job) -> str:
    left = f"{job.remaining} rows of its prompt are left"
    if now.plan is not None:
        left += f", the last iteration was given {now.rows.get(job.handle, 0)}"
    if job.service_class is LS:
        return f"{left}; {_sharing(now.jobs, job)}"
    return f"{left}; they are computed with what LS leaves{_slack(now.state)}"


def _boundary(now: Moment) -> str:
    queue = now.jobs.count(BE, Stage.BOUNDARY)
    if now.room.free_slots < queue:
        return f"{now.room.free_slots} slots are free and {queue} rows want one"
    if now.plan is not None and (queue > now.caps.join_rows or not now.plan.entries):
        started = len(now.plan.entries)
        return f"{queue} rows want to start a token; the last iteration started {started}"
    return ""


def _without_a_row(now: Moment, job: Job) -> str:
    """It is on the device, and the last plan went without it."""
    chunks = now.plan.device if now.plan is not None else ()
    of_ls = sum(chunk.job.service_class is LS for chunk in chunks)
    if job.service_class is LS:
        return f"{of_ls} LS requests ran before it, an iteration holds {now.caps.max_device_rows}"
    resident = now.jobs.count(BE, Stage.DECODE)
    return (
        f"{len(chunks) - of_ls} BE requests ran on the device beside {of_ls} of LS, {resident} "
        f"want a row of the {now.caps.max_device_rows}{_slack(now.state)}"
    )


def _between_layers(now: Moment) -> str:
    lanes = now.caps.join_rows if now.plan is None else now.plan.join_rows
    return (
        f"its row is between layers, with {now.jobs.count(BE, Stage.HOPPING)} in flight: the host "
        f"attends, and {lanes} at most rejoin at each of {now.caps.layers} layers"
    )


def _ls(jobs: JobIndex, room: Room, caps: Caps, job: Job) -> str:
    if job.stage is Stage.WAITING and job.prompt in under_way(jobs, LS):
        return SAME_PROMPT
    needed = blocks_for(job.tokens + 1, caps.block_tokens)
    held = sum(j.device_blocks for j in jobs.among(BE, DEVICE_STAGES))
    if needed > room.device_free_blocks + held:
        return (
            f"it needs {needed} KV blocks on the device, {room.device_free_blocks} are free and "
            f"BE holds {held}; LS requests that run must end first"
        )
    if needed > room.device_free_blocks:
        return f"BE leaves the device for it: {needed} KV blocks needed, {held} held by BE"
    if (decoding := jobs.count(LS, Stage.DECODE)) >= caps.max_device_rows:
        return f"{decoding} LS requests decode, as many as an iteration holds; one must end first"
    return _sharing(jobs, job)


def _sharing(jobs: JobIndex, job: Job) -> str:
    others = [j for j in jobs.among(LS, (Stage.PREFILL, Stage.WAITING)) if j is not job]
    rows = sum(j.remaining for j in others)
    return f"{len(others)} LS prompts with {rows} rows share the prefill with it"


def _be(jobs: JobIndex, room: Room, caps: Caps, job: Job) -> str:
    if job.prompt in under_way(jobs):
        return SAME_PROMPT
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
