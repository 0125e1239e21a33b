"""Why a request waits, in one sentence with figures; computed when somebody asks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from omniserve_agent.scheduling.admission import Verdict
from omniserve_agent.scheduling.be_queue import BeQueue
from omniserve_agent.scheduling.jobs import (
    DEVICE_STAGES,
    Job,
    JobIndex,
    ServiceClass,
    Stage,
)
from omniserve_agent.scheduling.plan import Plan, PolicyState, Room, Terms
from omniserve_agent.scheduling.shared_prompts import under_way

LS, BE = ServiceClass.LS, ServiceClass.BE
QUEUED = (Stage.SWAPPED, Stage.WAITING)
SAME_PROMPT = "another request computes the same prompt: it is found once it is complete"
UNDER_WAY = (Stage.PREFILL, Stage.STAGED, Stage.BOUNDARY, Stage.DECODE, Stage.HOPPING)


@dataclass(frozen=True)
class Moment:
    """What answers are made of; what several have in common is computed once. `plan` is the last
    one; None: there was none yet."""

    jobs: JobIndex
    room: Room
    terms: Terms
    state: PolicyState | None = None
    plan: Plan | None = None

    @cached_property
    def rows(self) -> dict[int, int]:
        """Of the plan on the device, by handle."""
        chunks = self.plan.device if self.plan is not None else ()
        return {chunk.job.handle: chunk.rows for chunk in chunks}

    @cached_property
    def be(self) -> BeQueue:
        """Why BE waits."""
        return BeQueue(self.terms, self.jobs, self.room)

    @cached_property
    def be_blocks(self) -> int:
        """Of the device, that BE holds."""
        return sum(job.device_blocks for job in self.jobs.among(BE, DEVICE_STAGES))

    @cached_property
    def ls_prompts(self) -> tuple[int, int]:
        """LS prompts that are being or wait to be computed, and their rows."""
        prompts = list(self.jobs.among(LS, (Stage.PREFILL, Stage.WAITING)))
        return len(prompts), sum(job.remaining for job in prompts)

    @cached_property
    def computed(self) -> dict[ServiceClass, set[int]]:
        """Prompts under way."""
        return {one: under_way(self.jobs, one) for one in ServiceClass}


def explain(now: Moment, job: Job) -> str:
    """What `job` waits for now; empty when it waits for nothing."""
    if job.held:
        return "its last token is on its way back from the device"
    match job.stage:
        case Stage.WAITING | Stage.SWAPPED:
            return _ls(now, job) if job.service_class is LS else _be(now, job)
        case Stage.PREFILL:
            return _prefill(now, job)
        case Stage.STAGED:
            return f"its prompt is computed {now.terms.prompts}{_slack(now.state, prompts=True)}"
        case Stage.BOUNDARY:
            return _boundary(now, job)
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
        return f"{left}; {_sharing(now, job)}"
    return f"{left}; they are computed {now.terms.prompts}{_slack(now.state, prompts=True)}"


def _boundary(now: Moment, job: Job) -> str:
    if not now.terms.caps.be_host:
        return now.be.why_paused(job)
    queue = now.jobs.count(BE, Stage.BOUNDARY)
    if now.room.free_slots < queue:
        return f"{now.room.free_slots} slots are free and {queue} rows want one"
    if now.plan is not None and (queue > now.terms.caps.join_rows or not now.plan.entries):
        started = len(now.plan.entries)
        return f"{queue} rows want to start a token; the last iteration started {started}"
    return ""


def _without_a_row(now: Moment, job: Job) -> str:
    """It is on the device, and the last plan went without it."""
    chunks = now.plan.device if now.plan is not None else ()
    of_ls = sum(chunk.job.service_class is LS for chunk in chunks)
    caps = now.terms.caps
    if job.service_class is LS:
        return f"{of_ls} LS requests ran before it, an iteration holds {caps.max_device_rows}"
    rows = f"the {caps.max_device_rows}"
    if caps.be_device_rows is not None:
        rows = f"BE's {caps.be_device_rows}"
    resident = now.jobs.count(BE, Stage.DECODE)
    return (
        f"{len(chunks) - of_ls} BE requests ran on the device beside {of_ls} of LS, {resident} "
        f"want a row of {rows}{_slack(now.state)}"
    )


def _between_layers(now: Moment) -> str:
    lanes = now.terms.caps.join_rows if now.plan is None else now.plan.join_rows
    return (
        f"its row is between layers, with {now.jobs.count(BE, Stage.HOPPING)} in flight: the host "
        f"attends, and {lanes} at most rejoin at each of {now.terms.caps.layers} layers"
        f"{_short(now.state)}"
    )


def _ls(now: Moment, job: Job) -> str:
    jobs, room, caps = now.jobs, now.room, now.terms.caps
    if job.stage is Stage.WAITING and job.prompt in now.computed[LS]:
        return SAME_PROMPT
    needed = job.new_blocks(caps.block_tokens)
    held = now.be_blocks
    if needed > room.device_free_blocks + held:
        return (
            f"it needs {needed} KV blocks on the device, {room.device_free_blocks} are free and "
            f"BE holds {held}; LS requests that run must end first"
        )
    if needed > room.device_free_blocks:
        return f"BE leaves the device for it: {needed} KV blocks needed, {held} held by BE"
    if (decoding := jobs.count(LS, Stage.DECODE)) >= caps.max_device_rows:
        return f"{decoding} LS requests decode, as many as an iteration holds; one must end first"
    return _sharing(now, job)


def _sharing(now: Moment, job: Job) -> str:
    others, rows = now.ls_prompts
    if job.stage in (Stage.PREFILL, Stage.WAITING):  # it is one of them
        others, rows = others - 1, rows - job.remaining
    return f"{others} LS prompts with {rows} rows share the prefill with it"


def _be(now: Moment, job: Job) -> str:
    if job.prompt in now.computed[BE]:
        return now.terms.never or SAME_PROMPT
    return now.be.why_queued(job)


def _slack(state: PolicyState | None, prompts: bool = False) -> str:
    """What is left for rows that decode, or for prompts."""
    if state is None:
        return ""
    until_s = state.prompts_s if prompts else state.budget_s
    return (
        f": {1e3 * max(0.0, until_s - state.ls_s):.1f} ms of an iteration, LS itself takes "
        f"{1e3 * state.ls_s:.1f} ms{_short(state)}"
    )


def _short(state: PolicyState | None) -> str:
    if state is None or not state.ls_lacks_kv:
        return ""
    return "; LS lacks device KV, and until it has it BE gets what costs LS next to nothing"
