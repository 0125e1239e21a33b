"""The simple policy: LS decode, LS prefill, BE prefill, BE decode, in that order, with fixed caps.

It promises order and progress, not latencies: the SLO-driven policy replaces its caps by
predictions and fills iterations through `fill`. BE keeps a small floor of prefill work and join
lanes in every iteration, so that the oldest BE request always progresses.
"""

from __future__ import annotations

from dataclasses import dataclass

from omniserve_agent.scheduling import be_places, fill_be, fill_ls
from omniserve_agent.scheduling.be_prefill import RowLayers
from omniserve_agent.scheduling.filling import Filling, Grant
from omniserve_agent.scheduling.jobs import JobIndex
from omniserve_agent.scheduling.plan import Caps, Plan, Room, Terms, Unlearning


@dataclass(frozen=True)
class FixedCaps(Unlearning):
    """See the module; `caps` are the engine's limits."""

    caps: Caps

    def plan(self, jobs: JobIndex, room: Room, now_s: float) -> Plan:
        """The next iteration under fixed caps."""
        caps = self.caps
        return self.fill(
            jobs,
            room,
            Grant(
                device_rows=caps.max_device_rows,
                ls_prefill_rows=caps.ls_prefill_rows,
                be_prefill=RowLayers(caps),
                join_rows=caps.join_rows,
                entries=caps.join_rows,
                be_host_admissions=caps.be_host_admissions,
                sweeps=caps.sweeps,
            ),
        )

    def terms(self, jobs: JobIndex) -> Terms:
        """See `Policy`."""
        caps = self.caps
        rows = f"in at most {caps.be_prefill_rows} rows of an iteration, with those of LS prompts"
        return Terms(
            caps, prompts=rows, arrival_blocks=caps.device_blocks // be_places.ARRIVAL_PART
        )

    def fill(self, jobs: JobIndex, room: Room, grant: Grant) -> Plan:
        """The next iteration with what it was granted."""
        filling = Filling(
            caps=self.caps,
            grant=grant,
            device_free=room.device_free_blocks,
            host_uncommitted=room.host_free_blocks - jobs.host_growth_blocks,
            rows_left=grant.device_rows,
        )
        fill_ls.decode(jobs, filling)
        fill_ls.reclaim_for_growth(jobs, filling)
        fill_ls.prefill(jobs, filling)
        if grant.be_rows is not None:  # places that LS prompts did not take are not BE's
            filling.rows_left = min(filling.rows_left, grant.be_rows)
        be_places.promote(jobs, filling)
        be_places.admit(jobs, filling)
        rows = fill_be.device_prefill(jobs, filling)
        fill_be.decode(jobs, filling)
        fill_be.leave_without_rows(jobs, filling)
        return Plan(
            moves=tuple(filling.moves),
            admissions=tuple(filling.admissions),
            device=tuple(filling.device),
            entries=tuple(fill_be.entries(jobs, room, filling)),
            staged=tuple(filling.staged),
            prefill_row_layers=grant.be_prefill.row_layers(
                filling.ls_prefill_rows, rows, filling.staged
            ),
            join_rows=grant.join_rows,
            spare_lanes=grant.spare_lanes,
            sweeps=grant.sweeps,
        )
