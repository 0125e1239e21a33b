"""Progress floors: a BE service may be promised a share of the time (`minSharePercent`).

What a service is owed grows with time and shrinks with what it had itself of iterations
(`Work.served`); it is paid before slack is looked at, and never grows beyond a bound, so that a
long LS peak is not followed by an equally long BE one.

Time goes only to where the service can use it. Rows that decode on the device are its own, and come
first. Lanes are shared by all offloaded rows: they get its part of them. Before a prompt that waits
others are under way, which pay nothing off: they get no more than the promised share.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from omniserve_agent.scheduling.jobs import Job, JobIndex, ServiceClass, Stage
from omniserve_agent.scheduling.latency import LatencyModel, Work

BE = ServiceClass.BE
MOST_OWED_S = 0.5
PAID_AT_ONCE_S = 0.05  # in one iteration: LS latency suffers in small steps


class Owed(NamedTuple):
    """What is paid now."""

    service: str | None = None  # whose jobs come first
    seconds: float = 0.0
    decoding: int = 0  # its rows on the device
    hopping: float = 0.0  # its part of the rows in flight
    prompts_s: float = 0.0  # of `seconds`, for prompts


NOTHING = Owed()


@dataclass(slots=True)
class Floors:
    """Services with a promise, and what each is owed in seconds."""

    _shares: dict[str, float] = field(default_factory=dict)
    _owed_s: dict[str, float] = field(default_factory=dict)
    _last_s: float = 0.0  # of the last iteration

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
        """An iteration: everybody with a promise earned, and was paid what it had of it."""
        if not self._shares:
            return
        self._last_s = seconds
        for service, share in self._shares.items():
            left = self._owed_s.get(service, 0.0) + share * seconds
            left -= _had_s(work, service, seconds, model)
            self._owed_s[service] = min(MOST_OWED_S, max(-MOST_OWED_S, left))

    def owed(self, jobs: JobIndex) -> Owed:
        """To the service that is owed most; NOTHING where all have had their shares."""
        if not self._shares:
            return NOTHING
        for name in self._shares:
            if name not in jobs.promised:
                self._owed_s[name] = 0.0  # nothing to do is nothing missed
        owed_s, name = max([(self._owed_s.get(name, 0.0), name) for name in self._shares])
        return self._paid(name, min(PAID_AT_ONCE_S, owed_s), jobs) if owed_s > 0.0 else NOTHING

    def _paid(self, name: str, seconds: float, jobs: JobIndex) -> Owed:
        stages = jobs.promised[name]
        hopping, prompts_s = stages.get(Stage.HOPPING, 0), 0.0
        if stages.get(Stage.STAGED) or stages.get(Stage.PREFILL):
            prompts_s = seconds
        elif stages.get(Stage.WAITING):
            prompts_s = min(seconds, self._shares[name] * self._last_s)
        return Owed(
            name,
            seconds,
            stages.get(Stage.DECODE, 0),
            hopping / jobs.count(BE, Stage.HOPPING) if hopping else 0.0,
            prompts_s,
        )


def _had_s(work: Work, service: str, seconds: float, model: LatencyModel) -> float:
    """Prefills for the host have calls of their own; rows of the batch share the rest of the time.

    Rows that land are booked with all of their layers: they may be more than joined just now.
    """
    had = work.served.get(service)
    if had is None:
        return 0.0
    staged_s = min(seconds, sum([model.dense.at(rows) for rows in work.chunk_rows]))
    batch = float(model.layers * work.device_rows) + sum(work.joined_rows)
    of_batch = had.batch / max(had.batch, batch, 1)
    return staged_s * had.staged / max(1, sum(work.chunk_rows)) + (seconds - staged_s) * of_batch
