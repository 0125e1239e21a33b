"""The SLO-driven policy: every iteration's caps come from deadlines and the latency model.

It carries no headroom. Order and room are those of `FixedCaps`; what is fixed there is computed
here: how many LS prompt rows, how many BE rows on the device and how many BE prompt rows fit before
the earliest deadline, and of those as many as maximise BE progress per second.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from omniserve_agent.scheduling.budget import (
    Forecast,
    PromptLengths,
    best_prefill_rows,
    largest_fitting,
    with_prefill,
)
from omniserve_agent.scheduling.fixed_caps import FixedCaps
from omniserve_agent.scheduling.jobs import Job, JobIndex, ServiceClass, Stage
from omniserve_agent.scheduling.latency import Correction, LatencyModel, Work, pairs
from omniserve_agent.scheduling.plan import STAGED_CHUNK_ROWS, Caps, Plan, Room

LS, BE = ServiceClass.LS, ServiceClass.BE
IDLE_BUDGET_S = 0.25  # of an iteration while no LS service has been seen
LONGEST_S = 1.0  # no iteration is planned longer, whatever the deadlines allow
MIN_LS_CHUNK_ROWS = 16  # LS prefill never stands still, even where a decode is already late
OBJECTIVE_QUANTILE = 0.99  # predictions hold for as many iterations as requests shall attain


@dataclass
class Omniserve:
    """See the module. `caps` bound what budgets may grow to."""

    caps: Caps
    model: LatencyModel
    correction: Correction = field(default_factory=Correction)
    quantile: float = OBJECTIVE_QUANTILE
    _prompts: dict[str, PromptLengths] = field(default_factory=dict)

    # ---- events ----------------------------------------------------------------------------

    def arrived(self, job: Job) -> None:
        """An LS prompt's length tells what may arrive next."""
        if job.deadlines is not None:
            seen = self._prompts.setdefault(job.service, PromptLengths(job.deadlines.ttft_s))
            seen.ttft_s = job.deadlines.ttft_s
            seen.observe(job.tokens)

    def observed(self, work: Work, seconds: float) -> None:
        """An iteration took this long."""
        self.correction.observe(kind_of(work), self.model.predict(work), seconds)

    # ---- plan ------------------------------------------------------------------------------

    def plan(self, jobs: JobIndex, room: Room, now_s: float) -> Plan:
        """The next iteration within the deadlines."""
        forecast = Forecast(self.model, self.correction, self.quantile)
        budget_s = self._budget(jobs, now_s, forecast)
        decode = self._decode_work(jobs)
        ls_rows = self._ls_rows(jobs, decode, budget_s, forecast)
        work = _with_ls_prefill(decode, ls_rows)
        be_rows = self._be_device_rows(jobs, work, budget_s, forecast)
        work = _with_be_decode(work, jobs, be_rows)
        prefill, most = self._be_prefill_rows(jobs, room, work, budget_s, forecast)
        caps = replace(
            self.caps,
            max_device_rows=jobs.count(LS, Stage.DECODE) + _ls_chunks(jobs) + be_rows,
            ls_prefill_rows=ls_rows,
            be_prefill_rows=prefill,
            be_prefill_floor_rows=prefill,  # already what fits beside the LS prefill
            be_host_admissions=_host_pays(jobs, most),
        )
        return FixedCaps(caps).plan(jobs, room, now_s)

    def _budget(self, jobs: JobIndex, now_s: float, forecast: Forecast) -> float:
        """Seconds until the earliest deadline of a row, or of an arrival that may come now."""
        fastest_s = forecast.expected("decode", Work(device_rows=1, logit_rows=1))
        budget_s = LONGEST_S
        for job in jobs.at(LS, Stage.DECODE):
            due = self._due(job, now_s, fastest_s)
            if due is not None:
                budget_s = min(budget_s, due - now_s)
        for seen in self._prompts.values():
            prompt = Work(device_rows=seen.p95, device_pairs=pairs(0, seen.p95), logit_rows=1)
            budget_s = min(budget_s, seen.ttft_s - forecast.seconds("prefill", prompt))
        if not self._prompts:
            budget_s = min(budget_s, IDLE_BUDGET_S)
        return max(budget_s, 0.0)

    def _due(self, job: Job, now_s: float, fastest_s: float) -> float | None:
        if job.deadlines is None:
            return None
        return job.deadlines.next_s(now_s, job.max_total_tokens - job.tokens, fastest_s)

    def _decode_work(self, jobs: JobIndex) -> Work:
        """LS decode rows and the joins that are expected beside them."""
        decoding = jobs.at(LS, Stage.DECODE)
        per_layer = min(jobs.count(BE, Stage.HOPPING) / self.caps.layers, self.caps.join_rows)
        return Work(
            device_rows=len(decoding),
            joined_rows=[per_layer] * self.caps.layers,
            logit_rows=len(decoding),
            device_keys=sum(job.tokens for job in decoding),
        )

    def _ls_rows(self, jobs: JobIndex, work: Work, budget_s: float, forecast: Forecast) -> int:
        """LS prompt rows that fit beside the decodes; never none while a prompt waits."""
        wanted = sum(job.remaining for job in jobs.at(LS, Stage.PREFILL))
        wanted += sum(job.tokens for job in jobs.at(LS, Stage.WAITING))
        wanted = min(wanted + jobs.count(LS, Stage.SWAPPED), self.caps.ls_prefill_rows)
        if wanted == 0 or not work.device_rows:
            return wanted
        return largest_fitting(
            min(MIN_LS_CHUNK_ROWS, wanted),
            wanted,
            lambda rows: forecast.seconds("prefill", _with_ls_prefill(work, rows)) <= budget_s,
        )

    def _be_device_rows(
        self, jobs: JobIndex, work: Work, budget_s: float, forecast: Forecast
    ) -> int:
        kind = kind_of(work)
        free = self.caps.max_device_rows - jobs.count(LS, Stage.DECODE)
        resident = jobs.count(BE, Stage.DECODE, Stage.PREFILL) + jobs.count(BE, Stage.WAITING)
        return largest_fitting(
            0,
            max(0, min(free, resident)),
            lambda rows: forecast.seconds(kind, _with_be_decode(work, jobs, rows)) <= budget_s,
        )

    def _be_prefill_rows(
        self, jobs: JobIndex, room: Room, work: Work, budget_s: float, forecast: Forecast
    ) -> tuple[int, int]:
        """Of the rows that fit, those that maximise BE progress per second; and how many fit."""
        staged = jobs.at(BE, Stage.STAGED)
        if not (staged or jobs.count(BE, Stage.WAITING, Stage.PREFILL)):
            return 0, 0
        layers = self.caps.layers
        context = staged[0].tokens // 2 if staged else 0
        prompt_rows = staged[0].remaining if staged else STAGED_CHUNK_ROWS

        def seconds(rows: int) -> float:
            with_rows = with_prefill(work, layers, rows, context, prompt_rows)
            return forecast.seconds("prefill", with_rows)

        most = largest_fitting(0, self.caps.be_prefill_rows, lambda r: seconds(r) <= budget_s)
        edges = [edge for edge in self.model.dense.edges() if edge < most]
        steps = float(jobs.count(BE, Stage.HOPPING) + layers * jobs.count(BE, Stage.DECODE))
        weight = self._prefill_weight(jobs, room)
        return best_prefill_rows([0, *edges, most], seconds, steps, weight, layers), most

    def _prefill_weight(self, jobs: JobIndex, room: Room) -> float:
        """What a prefill row-layer is worth in layer-steps of decoding: as much, or nothing.

        A request costs its prompt's marginal time however that is cut, and its share of decoding
        iterations, which is the smaller the more rows decode at once. So prompts go first while
        there are places for more decoding rows, and wait while rows queue for a slot
        (docs/decisions/0004).
        """
        queued = jobs.count(BE, Stage.BOUNDARY) - room.free_slots
        return 0.0 if queued > self.caps.join_rows else 1.0


def kind_of(work: Work) -> str:
    """Kinds of iterations are corrected apart: `sweep` may wait for the host."""
    if work.device_rows == 0:
        return "sweep"
    return "prefill" if work.chunk_rows or work.device_pairs else "decode"


def _host_pays(jobs: JobIndex, prefill_rows: int) -> bool:
    """Whether prompts are computed faster than the device's own BE rows use them up.

    Each of those yields a token per iteration and so asks for prompt/output rows of prefill. While
    that is more than fits, prefill is the ceiling: a request on the host would only take prefill
    from one that decodes (layers + 1) times as fast on the device.
    """
    waiting = jobs.at(BE, Stage.WAITING)
    if not waiting:
        return True
    first = waiting[0]
    output = max(1, first.predicted_tokens - first.tokens)
    return prefill_rows >= jobs.count(BE, Stage.DECODE) * first.tokens / output


def _ls_chunks(jobs: JobIndex) -> int:
    return jobs.count(LS, Stage.PREFILL, Stage.WAITING, Stage.SWAPPED)


def _with_ls_prefill(work: Work, rows: int) -> Work:
    return replace(
        work,
        device_rows=work.device_rows + rows,
        device_pairs=work.device_pairs + pairs(0, rows),
        logit_rows=work.logit_rows + (rows > 0),
    )


def _with_be_decode(work: Work, jobs: JobIndex, rows: int) -> Work:
    resident = jobs.at(BE, Stage.DECODE)[:rows]
    return replace(
        work,
        device_rows=work.device_rows + len(resident),
        logit_rows=work.logit_rows + len(resident),
        device_keys=work.device_keys + sum(job.tokens for job in resident),
    )
