"""`ls_alone`: LS under the same budgets as `omniserve`, BE never: what others are held against."""

from __future__ import annotations

from dataclasses import dataclass, field

from omniserve_agent.scheduling.jobs import Job, JobIndex
from omniserve_agent.scheduling.latency import LatencyModel, Work
from omniserve_agent.scheduling.omniserve import Omniserve
from omniserve_agent.scheduling.plan import Caps, Plan, PolicyState, Room, Terms


@dataclass
class LsAlone:
    """BE requests are taken and wait for ever."""

    caps: Caps
    model: LatencyModel
    inner: Omniserve = field(init=False)

    def __post_init__(self) -> None:
        self.inner = Omniserve(self.caps, self.model)

    def plan(self, jobs: JobIndex, room: Room, now_s: float) -> Plan:
        """LS as `omniserve` plans it when it is alone."""
        return self.inner.plan(jobs.only_ls(), room, now_s)

    def terms(self, jobs: JobIndex) -> Terms:
        """See `Policy`."""
        return Terms(self.caps, never="under the policy ls_alone BE never runs")

    def arrived(self, job: Job) -> None:
        """An LS prompt's length tells what may arrive next."""
        self.inner.arrived(job)

    def observed(self, work: Work, seconds: float) -> None:
        """Corrects the predictions."""
        self.inner.observed(work, seconds)

    def expects(self, work: Work) -> float:
        """See `Policy`."""
        return self.inner.expects(work)

    def judged(self, service: str, attained: bool, now_s: float) -> None:
        """Moves the margin."""
        self.inner.judged(service, attained, now_s)

    @property
    def state(self) -> PolicyState:
        """See `Policy`."""
        return self.inner.state
