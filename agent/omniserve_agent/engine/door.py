"""Admission in the engine: LS requests that are predicted to miss are refused, or held back."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from omniserve_agent.engine.intake import Intake
from omniserve_agent.engine.messages import Refused, Submit
from omniserve_agent.engine.requests import Request
from omniserve_agent.scheduling.admission import AdmissionMode, Gate, Verdict


@dataclass(eq=False)
class Door:
    """Judges every LS request that has an SLO; without a gate everything is taken."""

    intake: Intake
    gate: Gate | None = None
    taken: Callable[[Request], None] = lambda _: None
    refused: Counter[str] = field(default_factory=Counter)  # by service
    _held: deque[Request] = field(default_factory=deque)

    @property
    def held(self) -> int:
        """Requests held back now."""
        return len(self._held)

    def submit(self, submit: Submit, now_s: float) -> Refused | None:
        """Take a request, hold it back, or say why not."""
        prepared = self.intake.prepare(submit, now_s)
        if isinstance(prepared, Refused):
            return prepared
        verdict = self._judge(prepared, now_s)
        if verdict is None or verdict.admitted:
            self._take(prepared)
            return None
        if self._holds_back and len(self._held) < self.intake.limits.max_waiting:
            self._held.append(prepared)
            return None
        self.refused[submit.service] += 1
        return Refused(
            request_id=submit.request_id,
            reason="slo",
            message=f"{submit.service} could not attain its SLO now: {verdict.reason}",
            retry_after_s=verdict.retry_after_s,
        )

    def step(self, now_s: float) -> None:
        """Take those of the held back that would attain now, in their order."""
        while self._held:
            verdict = self._judge(self._held[0], now_s)
            if verdict is not None and not verdict.admitted:
                return
            self._take(self._held.popleft())

    def cancel(self, request_id: str) -> bool:
        """Forget a request that is held back; False: there is none of this id."""
        for request in self._held:
            if request.submit.request_id == request_id:
                self._held.remove(request)
                return True
        return False

    @property
    def _holds_back(self) -> bool:
        return self.gate is not None and self.gate.mode is AdmissionMode.QUEUE

    def _judge(self, request: Request, now_s: float) -> Verdict | None:
        return self.gate.judge(self.intake.jobs, request.job, now_s) if self.gate else None

    def _take(self, request: Request) -> None:
        self.intake.accept(request)
        self.taken(request)
