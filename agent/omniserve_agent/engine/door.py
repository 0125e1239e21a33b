"""Admission in the engine: LS requests that are predicted to miss are refused, or held back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from omniserve_agent.engine.intake import Intake
from omniserve_agent.engine.messages import Refused, Submit
from omniserve_agent.engine.requests import Request
from omniserve_agent.scheduling import explain
from omniserve_agent.scheduling.admission import Admission, AdmissionMode, Verdict
from omniserve_agent.scheduling.held_back import HeldBack


@dataclass(eq=False)
class Door:
    """Judges every LS request that has an SLO."""

    intake: Intake
    gate: Admission
    taken: Callable[[Request], None]
    refused: Counter[str] = field(default_factory=Counter)  # by service
    _held: HeldBack[Request] = field(init=False)

    def __post_init__(self) -> None:
        self._held = HeldBack(self.gate, lambda request: request.job)

    @property
    def held(self) -> int:
        """Requests held back now."""
        return len(self._held)

    def held_by_service(self) -> Counter[str]:
        """The same, apart."""
        return Counter(request.submit.service for request in self._held)

    def waits(self, now_s: float) -> dict[str, str]:
        """Per service, why its first request that is held back waits."""
        found: dict[str, str] = {}
        for request, why in self._reasons(now_s):
            found.setdefault(request.submit.service, why)
        return found

    def why(self, request_ids: Sequence[str], now_s: float) -> dict[str, str]:
        """The same by request id, of those that are held back."""
        by_id = ((request.submit.request_id, why) for request, why in self._reasons(now_s))
        return {request_id: why for request_id, why in by_id if request_id in request_ids}

    def _reasons(self, now_s: float) -> Iterator[tuple[Request, str]]:
        first: Verdict | None = None
        for before, request in enumerate(self._held):
            if first is None:  # nobody overtakes: all wait for what it waits for
                first = self.gate.judge(self.intake.jobs, request.job, now_s)
            yield request, explain.held(before, first)

    def submit(self, submit: Submit, now_s: float) -> Refused | None:
        """Take a request, hold it back, or say why not."""
        prepared = self.intake.prepare(submit, now_s)
        if isinstance(prepared, Refused):
            return prepared
        verdict = self._held.judge(self.intake.jobs, prepared, now_s)
        if verdict.admitted:
            self._take(prepared, now_s)
        elif self.gate.mode is AdmissionMode.QUEUE and self.held < self.intake.limits.max_waiting:
            self._held.add(prepared)
        else:
            return self._refuse(prepared, verdict, now_s)
        return None

    def step(self, now_s: float) -> None:
        """Take those of the held back whose time has come."""
        for first in islice(self._held, 1):
            self.intake.look_up(first)
        for request in self._held.ready(self.intake.jobs, now_s):
            self._take(request, now_s)

    def cancel(self, request_id: str) -> bool:
        """Forget a request that is held back; False: there is none of this id."""
        return self._held.remove(lambda request: request.submit.request_id == request_id)

    def _take(self, request: Request, now_s: float) -> None:
        self.intake.accept(request, now_s)
        self.taken(request)

    def _refuse(self, request: Request, verdict: Verdict, now_s: float) -> Refused:
        submit = request.submit
        self.refused[submit.service] += 1
        return Refused(
            request_id=submit.request_id,
            reason="slo",
            message=f"{submit.service} could not attain its SLO now: {verdict.reason}",
            retry_after_s=self._held.retry_s(self.intake.jobs, request, now_s),
        )
