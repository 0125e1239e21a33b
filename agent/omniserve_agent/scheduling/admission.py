"""Admission: whether one more LS request can attain without another one missing (design.md, 7).

The engine is projected forward with the latency model: decodes and prompts that wait set the price
of an iteration; the newcomer's prompt takes its turn behind those that are due earlier. Only load
refuses: a request whose own prompt cannot be computed within its TTFT on an idle engine is taken
and counts as missed, since no waiting would help it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from omniserve_agent.scheduling.jobs import Job, JobIndex, ServiceClass, Stage
from omniserve_agent.scheduling.latency import LatencyModel, Work, pairs

LS = ServiceClass.LS
CHUNK_ROWS = 512  # of a prompt beside decodes, when its time is projected
SAFETY = 0.95  # of a deadline is used: the projection is an estimate
LEAST_RETRY_S, MOST_RETRY_S = 1.0, 60.0


class AdmissionMode(StrEnum):
    """What happens to a request that would miss."""

    OFF = "off"  # taken all the same
    REJECT = "reject"  # 429 with Retry-After
    QUEUE = "queue"  # taken once it would attain, or its deadline has passed


@dataclass(frozen=True, slots=True)
class Verdict:
    """`reason` for the error message; `retry_after_s` is a prediction."""

    admitted: bool
    reason: str = ""
    retry_after_s: float = 0.0


ADMITTED = Verdict(True)


@dataclass(frozen=True)
class Gate:
    """Judges LS requests that have an SLO."""

    model: LatencyModel
    mode: AdmissionMode = AdmissionMode.REJECT

    def judge(self, jobs: JobIndex, new: Job, now_s: float) -> Verdict:
        """Whether `new` and all that were admitted before it are predicted to attain."""
        if self.mode is AdmissionMode.OFF or new.deadlines is None:
            return ADMITTED
        load = _load(jobs)
        due_s = new.deadlines.arrival_s + new.deadlines.ttft_s
        alone_s = self._first_token_s(_Load(), new.tokens)
        if alone_s > SAFETY * new.deadlines.ttft_s:
            return ADMITTED
        first_s = self._first_token_s(load, new.tokens)
        left_s = due_s - now_s
        if first_s > SAFETY * left_s:
            if self.mode is AdmissionMode.QUEUE and left_s <= alone_s:
                return ADMITTED  # waiting longer cannot help it
            return Verdict(False, _late("first token", first_s, left_s), _bounded(first_s - left_s))
        tpot_s = min([new.deadlines.tpot_s, *load.tpots_s])
        step_s = self._decode_s(load, new)
        if step_s > SAFETY * tpot_s:
            share = 1.0 - tpot_s / step_s  # of the decoding requests that must end first
            drain_s = share * load.mean_left_tokens * step_s
            return Verdict(False, _late("token", step_s, tpot_s), _bounded(drain_s))
        return ADMITTED

    def _first_token_s(self, load: _Load, tokens: int) -> float:
        """All prompts that wait and this one, in chunks beside the decodes."""
        rows = load.prompt_rows + tokens
        iterations = -(-rows // CHUNK_ROWS)
        chunk = -(-rows // iterations)
        work = Work(
            device_rows=load.decodes + chunk,
            logit_rows=load.decodes + 1,
            device_keys=load.keys,
            device_pairs=pairs(0, tokens) // iterations + 1,
        )
        return iterations * self.model.predict(work)

    def _decode_s(self, load: _Load, new: Job) -> float:
        """An iteration once the newcomer decodes beside all others, prompts included."""
        rows = load.decodes + load.prompts + 1
        keys = load.keys + load.prompt_rows + max(new.tokens, new.predicted_tokens)
        return self.model.predict(Work(device_rows=rows, logit_rows=rows, device_keys=keys))


@dataclass(slots=True)
class _Load:
    """What is there already."""

    decodes: int = 0
    keys: int = 0
    prompts: int = 0
    prompt_rows: int = 0
    left_tokens: int = 0
    tpots_s: tuple[float, ...] = ()

    @property
    def mean_left_tokens(self) -> float:
        return self.left_tokens / max(1, self.decodes)


def _load(jobs: JobIndex) -> _Load:
    decoding = jobs.at(LS, Stage.DECODE)
    tpots = {job.deadlines.tpot_s for job in decoding if job.deadlines is not None}
    load = _Load(
        decodes=len(decoding),
        keys=sum(job.tokens for job in decoding),
        left_tokens=sum(max(0, job.predicted_tokens - job.tokens) for job in decoding),
        tpots_s=tuple(tpots),
    )
    for stage in (Stage.PREFILL, Stage.WAITING, Stage.SWAPPED):
        for job in jobs.at(LS, stage):
            load.prompts += 1
            load.prompt_rows += job.remaining if stage is not Stage.SWAPPED else 1
    return load


def _late(what: str, predicted_s: float, allowed_s: float) -> str:
    return f"the {what} would take {predicted_s * 1e3:.0f} ms of {max(0, allowed_s) * 1e3:.0f} ms"


def _bounded(seconds: float) -> float:
    return min(max(seconds, LEAST_RETRY_S), MOST_RETRY_S)
