"""Progress floors: a BE service may be promised a share of the time (`minSharePercent`).

What a service is owed grows with time and shrinks with the BE work that iterations did; it is paid
before slack is looked at, and never grows beyond a bound, so that a long LS peak is not followed by
an equally long BE one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from omniserve_agent.scheduling.jobs import Job, JobIndex, ServiceClass, Stage
from omniserve_agent.scheduling.latency import LatencyModel, Work

BE = ServiceClass.BE
MOST_OWED_S = 0.5
PAID_AT_ONCE_S = 0.05  # in one iteration: LS latency suffers in small steps


@dataclass(slots=True)
class Floors:
    """Services with a promise, and what each is owed in seconds."""

    _shares: dict[str, float] = field(default_factory=dict)
    _owed_s: dict[str, float] = field(default_factory=dict)
    _paying: str | None = None

    def arrived(self, job: Job) -> None:
        """A job of a service; the newest says what is promised."""
        if job.service_class is not BE:
            return
        if job.min_share_percent:
            self._shares[job.service] = job.min_share_percent / 100.0
        elif job.service in self._shares:
            del self._shares[job.service]
            self._owed_s.pop(job.service, None)

    def observed(self, work: Work, seconds: float, model: LatencyModel) -> None:
        """An iteration: everybody with a promise earned, who was first was paid its BE work."""
        if not self._shares:
            return
        for service, share in self._shares.items():
            owed = self._owed_s.get(service, 0.0) + share * seconds
            self._owed_s[service] = min(MOST_OWED_S, owed)
        if self._paying is not None:
            paid = sum(model.dense.at(rows) for rows in work.chunk_rows)
            paid += model.dense.at(1) * sum(work.joined_rows) / max(1, work.device_rows)
            left = self._owed_s.get(self._paying, 0.0) - paid
            self._owed_s[self._paying] = max(-MOST_OWED_S, left)

    def owed(self, jobs: JobIndex, now_s: float) -> tuple[float, str | None]:
        """Seconds to pay now, and the service that comes first; (0, None) where nothing is owed."""
        self._paying = None
        if not self._shares:
            return 0.0, None
        present = {
            job.service
            for stage in (Stage.STAGED, Stage.WAITING, Stage.BOUNDARY, Stage.DECODE, Stage.PREFILL)
            for job in jobs.at(BE, stage)
        }
        owed = {name: self._owed_s.get(name, 0.0) for name in self._shares if name in present}
        for name in self._shares:
            if name not in present:
                self._owed_s[name] = 0.0  # nothing to do is nothing missed
        if not owed:
            return 0.0, None
        self._paying = max(owed, key=lambda name: (owed[name], name))
        return min(PAID_AT_ONCE_S, max(0.0, owed[self._paying])), self._paying
