"""LS requests that admission holds back, in the order they came (`AdmissionMode.QUEUE`)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from math import inf
from typing import Generic, TypeVar

from omniserve_agent.scheduling.admission import Admission, Verdict
from omniserve_agent.scheduling.jobs import Job, JobIndex
from omniserve_agent.scheduling.retry import LEAST_RETRY_S

T = TypeVar("T")
TOLD_FOR_S = 1.0  # projecting takes milliseconds: refusals of a kind share one for so long


@dataclass(eq=False)
class HeldBack(Generic[T]):
    """Nobody overtakes; those that would miss on an idle engine too come after all that need not,
    so that the first one holds up the others for its own TTFT at most."""

    gate: Admission
    job_of: Callable[[T], Job]
    _hopeful: deque[T] = field(default_factory=deque)
    _lost: deque[T] = field(default_factory=deque)
    _told: dict[tuple[str, int], tuple[float, float]] = field(default_factory=dict)

    def __iter__(self) -> Iterator[T]:
        return chain(self._hopeful, self._lost)

    def __len__(self) -> int:
        return len(self._hopeful) + len(self._lost)

    def judge(self, jobs: JobIndex, newcomer: T, now_s: float) -> Verdict:
        """Admission's verdict on one that may not overtake either. LS without an SLO may: it is
        never judged."""
        job = self.job_of(newcomer)
        before = len(self) if self.gate.lost(job, now_s) else len(self._hopeful)
        verdict = self.gate.judge(jobs, job, now_s)
        if not (verdict.admitted and before) or job.deadlines is None:
            return verdict
        return Verdict(False, f"admission holds back {before} requests that came before it")

    def retry_s(self, jobs: JobIndex, refused: T, now_s: float) -> float:
        """When one like it would be let in; where a full line refused it, when the first leaves.

        Of the same service and about the same length, others were told so lately: until then.
        """
        first = self.job_of(next(iter(self), refused))
        kind = first.service, first.tokens.bit_length()
        told_s, until_s = self._told.get(kind, (-inf, 0.0))
        if now_s - told_s >= TOLD_FOR_S:
            told_s, until_s = now_s, now_s + self.gate.retry_s(jobs, first, now_s)
            self._told[kind] = told_s, until_s
        return max(LEAST_RETRY_S, until_s - now_s)

    def add(self, item: T) -> None:
        """One that was refused, to wait behind all who came before it."""
        self._hopeful.append(item)

    def remove(self, unwanted: Callable[[T], bool]) -> bool:
        """Forget the first that is unwanted; False: there is none."""
        for line in (self._hopeful, self._lost):
            for item in line:
                if unwanted(item):
                    line.remove(item)
                    return True
        return False

    def ready(self, jobs: JobIndex, now_s: float) -> Iterator[T]:
        """Those to take now; each is to be in `jobs` before the next is asked for."""
        while self._hopeful:
            job = self.job_of(self._hopeful[0])
            if self.gate.lost(job, now_s):
                self._lost.append(self._hopeful.popleft())
            elif self.gate.judge(jobs, job, now_s).admitted:
                yield self._hopeful.popleft()
            else:
                return
        if self._lost and self.gate.judge(jobs, self.job_of(self._lost[0]), now_s).admitted:
            yield self._lost.popleft()
