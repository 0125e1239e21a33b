"""KV on its way between the device and hosts, and the requests that go on once theirs is there."""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heappop, heappush

from omniserve_agent.simulation.hosts import Hosts
from omniserve_agent.simulation.links import Link
from omniserve_agent.simulation.runs import Run

# Of KV that waits for one link, in memory of the device's own host: more is not computed. Less than
# a long prompt would keep prompts for other hosts waiting behind it.
STAGING_BYTES = 4 * 2**30


@dataclass(eq=False)
class Transfers:
    """See the module. A request's job is `held` while it waits."""

    hosts: Hosts
    token_bytes: float  # of KV, all layers
    _waits: int = 0

    def advance(self, now_s: float) -> None:
        """It is later: those whose KV is across go on."""
        for link in (*self.hosts.there, *self.hosts.back):
            link.advance(now_s)
            while link.waiting and link.waiting[0][0] <= link.crossed_bytes:
                _, number, run = heappop(link.waiting)
                if run.crossing == number:  # else it has gone elsewhere since
                    self.go_on(run)

    def store(self, run: Run, tokens: float) -> None:
        """KV of so many tokens goes to the request's host."""
        run.sent_bytes = self.hosts.there[run.host].send(tokens * self.token_bytes)

    def load(self, run: Run, tokens: float) -> None:
        """KV of so many tokens is read for the device."""
        self.hosts.back[run.host].send(tokens * self.token_bytes)

    def wait_until_stored(self, run: Run) -> None:
        """It goes on from the host once all of its KV is there."""
        self._wait(run, self.hosts.there[run.host], run.sent_bytes)

    def wait_until_loaded(self, run: Run) -> None:
        """It goes on from the device once what was read for it is there."""
        link = self.hosts.back[run.host]
        self._wait(run, link, link.queued_bytes)

    def go_on(self, run: Run) -> None:
        """It waits for no KV."""
        run.crossing = 0
        run.job.held = run.held

    def _wait(self, run: Run, link: Link, upto_bytes: float) -> None:
        self.go_on(run)
        if link.crossed_bytes < upto_bytes:
            self._waits += 1
            run.crossing = self._waits
            run.job.held = True
            heappush(link.waiting, (upto_bytes, self._waits, run))

    def idle(self, run: Run) -> bool:
        """Whether the link to its host has no KV to carry."""
        return self.hosts.there[run.host].backlog_bytes <= 0

    def full(self, run: Run) -> bool:
        """Whether its prompt has to wait for the links before more of it is computed."""
        links = self.hosts.there[run.host], self.hosts.back[run.host]
        return any(link.backlog_bytes >= STAGING_BYTES for link in links)

    def is_remote(self, run: Run) -> bool:
        """Whether its host is behind a network."""
        return self.hosts.pools[run.host].link_bytes_per_s is not None
