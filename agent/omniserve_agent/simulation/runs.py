"""A request in the simulator."""

from __future__ import annotations

from dataclasses import dataclass

from omniserve_agent.scheduling.jobs import Job
from omniserve_agent.simulation.workload import Arrival


@dataclass(slots=True, eq=False)
class Run:
    """What the policies see of a request, and what became of it so far."""

    job: Job
    arrival: Arrival
    host: int = 0
    guesses: int = 0  # behind its row in flight
    host_load: int = 0  # tokens that its host was chosen for
    copied_tokens: int = 0  # of its KV on the device, the host has so much
    staged_left: int = 0  # row-layers of its layer-major prefill still to compute
    sent_bytes: float = 0.0  # its KV is on its host once the link there has carried so many
    crossing: int = 0  # names what it waits for on a link (`transfers.py`); 0: nothing
    first_token_s: float | None = None
    last_token_s: float = 0.0
    output_tokens: int = 0
    pending: int = 0  # rows launched whose token has not come out yet

    @property
    def waits(self) -> bool:
        """Whether the token on its way back is the last there can be: no row may follow."""
        return self.job.tokens >= self.job.max_total_tokens

    @property
    def held(self) -> bool:
        """Whether its next row has to wait: for its KV, or for a token on its way back."""
        on_its_way = self.pending > 0 and (self.waits or not self.job.device_blocks)
        return self.crossing > 0 or on_its_way
