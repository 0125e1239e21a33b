"""`synchronous_offload`: attention of some requests on the host, and the device waits (NEO's way).

Two sub-batches run against each other: while the host attends the offloaded rows of a layer, the
device computes the others' layer; then it waits for the host (Jiang et al., MLSys 2025). An
offloaded row yields a token per iteration. As in NEO the number of offloaded rows is the most whose
host attention is predicted to fit under the other sub-batch's time, and they are left out where the
iteration without them is predicted to yield more. First come, first served; no SLO.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from omniserve_agent.scheduling.fixed_caps import FixedCaps
from omniserve_agent.scheduling.jobs import Job, JobIndex, ServiceClass
from omniserve_agent.scheduling.latency import Correction, LatencyModel, Work
from omniserve_agent.scheduling.plan import Caps, Plan, Room, Unlearning

LS, BE = ServiceClass.LS, ServiceClass.BE


@dataclass
class SynchronousOffload(Unlearning):
    """`host_bytes_per_s`: what the host's attention reads; `kv_bytes`: of one token, all layers."""

    caps: Caps
    model: LatencyModel
    host_bytes_per_s: float
    kv_bytes: float
    correction: Correction = field(default_factory=Correction)

    def plan(self, jobs: JobIndex, room: Room, now_s: float) -> Plan:
        """FixedCaps' order without classes for prompts; offloaded rows as far as they fit under."""
        caps = replace(self.caps, be_prefill_floor_rows=self.caps.be_prefill_rows)
        plan = FixedCaps(caps).plan(jobs, room, now_s)
        entries = self._fitting(plan, jobs)
        return replace(plan, entries=entries, waits_for_host=bool(entries))

    def _fitting(self, plan: Plan, jobs: JobIndex) -> tuple[Job, ...]:
        """The first-come rows whose host attention hides behind the device's work."""
        decode = [chunk for chunk in plan.device if chunk.rows == 1]
        rows = sum(chunk.rows for chunk in plan.device)
        work = Work(
            device_rows=rows,
            logit_rows=len(decode),
            device_keys=sum(chunk.job.tokens for chunk in decode),
        )
        device_s = self.correction.apply("device", self.model.predict(work))
        budget, spent, taken = device_s * self.host_bytes_per_s, 0.0, 0
        for job in plan.entries:
            spent += job.tokens * self.kv_bytes
            if spent > budget and (taken or rows):
                break
            taken += 1
        with_host = replace(work, joined_rows=[float(taken)] * self.caps.layers)
        together_s = max(self.model.predict(with_host), device_s)
        alone = rows / max(device_s, 1e-6)
        pays = (rows + taken) / max(together_s, 1e-6) >= alone
        return plan.entries[:taken] if pays or not rows else ()

    def observed(self, work: Work, seconds: float) -> None:
        """Corrects the predicted device time, by iterations that did not wait for the host."""
        if work.waited:
            return
        self.correction.observe("device", self.model.predict(work), seconds)
