"""From a plan to the rows of one iteration: blocks are grown, token ids and sample rows set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from omniserve_agent.engine.drafts import DraftSource
from omniserve_agent.engine.execution.iteration import (
    Entry,
    Executor,
    Iteration,
    SampleRow,
    Segment,
    StagedPrefill,
)
from omniserve_agent.engine.kv.residency import Residency
from omniserve_agent.engine.requests import Request
from omniserve_agent.scheduling.jobs import (
    DEVICE_STAGES,
    Job,
    JobIndex,
    ServiceClass,
    Stage,
    Tier,
)
from omniserve_agent.scheduling.plan import DeviceChunk, Plan

MAX_DRAFT = 7  # a hop carries at most 8 tokens
SWEEP_WAIT_NS = 20_000_000  # a layer of a sweep waits at most this long for its joins
HOST_WAIT_NS = 1_000_000_000  # the same where a policy has the device wait for the host


def _never() -> bool:
    return False


@dataclass(eq=False)
class BatchBuilder:
    """Builds iterations; remembers the layer-major prefills under way."""

    residency: Residency
    executor: Executor
    drafts: DraftSource
    staged: dict[int, StagedPrefill] = field(default_factory=dict)

    def build(
        self,
        number: int,
        plan: Plan,
        requests: Mapping[int, Request],
        jobs: JobIndex,
        interrupted: Callable[[], bool],
    ) -> Iteration | None:
        """The iteration, or None where not even a join can come."""
        # Growth first, for all: whoever gives way to a better-ranked row must not be in the batch.
        rows = [(chunk, self._grown(chunk, requests[chunk.job.handle])) for chunk in plan.device]
        segments = [
            self._segment(requests[chunk.job.handle], count)
            for chunk, count in rows
            if count and chunk.job.stage in DEVICE_STAGES
        ]
        staged = [s for job in plan.staged if (s := self._staged(job, requests)) is not None]
        entries = self._entries(plan, requests, jobs)
        staged = [s for s in staged if s.handle in self.staged]
        hopping = jobs.count(ServiceClass.BE, Stage.HOPPING)
        if not (segments or entries or staged or hopping):
            return None
        iteration = Iteration(
            number=number,
            segments=segments,
            entries=entries,
            staged=staged,
            prefill_row_layers=plan.prefill_row_layers if staged else 0,
            join_rows=plan.join_rows,
            wait_ns=0,
            interrupted=interrupted,
        )
        if plan.waits_for_host:
            iteration.wait_ns, iteration.overlaps = HOST_WAIT_NS, True
            iteration.interrupted = _never
        elif plan.sweeps and not iteration.has_ls and len(segments) <= hopping:
            iteration.wait_ns = SWEEP_WAIT_NS
        return iteration

    def land(self, request: Request) -> None:
        """The row is back from its last layer: its slot is free, wrong drafts are forgotten."""
        if request.slot is not None:
            self.executor.close_slot(request.slot)
            request.slot = None
        if request.host is not None:
            self.residency.host.store.truncate(request.host.sequence, request.job.computed)

    def _grown(self, chunk: DeviceChunk, request: Request) -> int:
        """Rows that this request can have now; 0 when it gave way or has nothing to compute."""
        job = request.job
        if request.device is None or job.held or job.stage not in DEVICE_STAGES:
            return 0
        rows = min(chunk.rows, job.remaining)
        grown = rows and self.residency.grow(Tier.DEVICE, request, job.computed + rows)
        return rows if grown else 0

    def _segment(self, request: Request, rows: int) -> Segment:
        job, table = request.job, request.device
        if table is None:
            raise RuntimeError(f"request {request.handle}: a device row without device KV")
        known = request.tokens[job.computed : job.computed + rows]
        on_device = len(known) < rows
        samples = job.computed + rows == job.tokens
        return Segment(
            handle=request.handle,
            service_class=job.service_class,
            sequence=table.sequence,
            start=job.computed,
            token_ids=[*known, 0] if on_device else known,
            from_seat=table.sequence if on_device else -1,
            sample=self._sample(request, job.tokens, table.sequence) if samples else None,
        )

    def _sample(self, request: Request, tokens_before: int, seat: int = -1) -> SampleRow:
        return SampleRow(
            handle=request.handle,
            params=request.submit.sampling,
            output_index=tokens_before - request.prompt_tokens,
            prompt=request.submit.prompt,
            output=request.output if request.needs_history else (),
            seat=seat,
        )

    def _staged(self, job: Job, requests: Mapping[int, Request]) -> StagedPrefill | None:
        """The job's layer-major prefill, begun where it has none yet."""
        under_way = self.staged.get(job.handle)
        request = requests[job.handle]
        if under_way is not None or job.stage is not Stage.STAGED or request.pending:
            return under_way
        if not self.residency.grow(Tier.HOST, request, job.tokens + 1) or request.host is None:
            return None
        staged = StagedPrefill(
            handle=job.handle,
            sequence=request.host.sequence,
            start=job.computed,
            token_ids=request.tokens[job.computed :],
            sample=self._sample(request, job.tokens),
        )
        self.staged[job.handle] = staged
        return staged

    def _entries(self, plan: Plan, requests: Mapping[int, Request], jobs: JobIndex) -> list[Entry]:
        """Rows that enter. One that gave way to a later one has lost its slot, maybe to that one:
        with a promised share, a worse-ranked request goes first."""
        opened = [
            (requests[job.handle], entry)
            for job in plan.entries
            if (entry := self._entry(job, requests, jobs, plan.join_rows)) is not None
        ]
        return [entry for request, entry in opened if request.slot == entry.slot]

    def _entry(
        self, job: Job, requests: Mapping[int, Request], jobs: JobIndex, lanes: int
    ) -> Entry | None:
        request = requests[job.handle]
        if job.stage is not Stage.BOUNDARY or job.held:
            return None
        draft = self._draft(request, lanes)
        if not self.residency.grow(Tier.HOST, request, job.computed + 1 + len(draft)):
            return None
        if request.host is None:
            raise RuntimeError(f"request {request.handle}: an offloaded row without host KV")
        request.draft = draft
        request.slot = self.executor.open_slot(request.host.sequence)
        jobs.move(job, Stage.HOPPING)
        return Entry(
            slot=request.slot,
            position=job.computed,
            token_ids=[request.tokens[job.computed], *draft],
            samples=[self._sample(request, job.tokens + i) for i in range(1 + len(draft))],
        )

    def _draft(self, request: Request, lanes: int) -> list[int]:
        """Guesses, where right ones could still be output and a choice needs no history.

        All tokens of a hop join together: more than the lanes of a layer would never come back.
        """
        left = request.job.max_total_tokens - request.job.tokens
        room = min(MAX_DRAFT, lanes - 1, left - 1)
        if room <= 0 or request.needs_history:
            return []
        return self.drafts.propose(request.handle, request.tokens, room)[:room]
