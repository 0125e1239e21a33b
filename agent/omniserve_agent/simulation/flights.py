"""Offloaded rows between their layers, as arrays: one entry per request in flight, whose row and
the guesses behind it go together."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from omniserve_agent.simulation.hosts import Hosts


@dataclass(frozen=True, slots=True)
class Swept:
    """A sweep: how long, the handles of rows past the last layer, rows that joined per layer."""

    seconds: float
    landed: list[int]
    joined: list[float]


@dataclass
class Flights:
    """Rows that left the batch at `layer` and whose attention is back at `ready`."""

    capacity: int
    layers: int
    hosts: Hosts
    count: int = 0
    joins: int = 0
    same_iteration_joins: int = 0
    _handle: NDArray[np.int64] = field(init=False)
    _layer: NDArray[np.int64] = field(init=False)
    _host: NDArray[np.int64] = field(init=False)
    _rows: NDArray[np.int64] = field(init=False)
    _ready: NDArray[np.float64] = field(init=False)
    _tokens: NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        self._handle, self._layer, self._host, self._rows = np.zeros((4, self.capacity), np.int64)
        self._ready, self._tokens = np.zeros((2, self.capacity))

    def enter(
        self,
        handles: list[int],
        hosts: list[int],
        tokens: list[float],
        rows: list[int],
        at_s: float,
    ) -> None:
        """Hops that begin, each of so many rows: their layer 0 is on its way to the host."""
        new = slice(self.count, self.count + len(handles))
        self._handle[new], self._layer[new], self._host[new] = handles, 0, hosts
        self._tokens[new], self._rows[new] = tokens, rows
        at = np.full(len(handles), at_s)
        self._ready[new] = self.hosts.submit(self._host[new], at, self._tokens[new])
        self.count = new.stop

    def leave(self, gone: set[int]) -> None:
        """Requests that were cancelled or dropped."""
        keep = [i for i in range(self.count) if int(self._handle[i]) not in gone]
        self._keep(np.array(keep, np.int64))

    def _keep(self, which: NDArray[np.int64]) -> None:
        at = slice(len(which))
        for column in (self._handle, self._layer, self._host, self._rows):
            column[at] = column[which]
        self._ready[at], self._tokens[at] = self._ready[which], self._tokens[which]
        self.count = len(which)

    def due(self, start_s: float, span_s: float, lanes: int) -> NDArray[np.int64]:
        """Rows that the pass [start, start + span) can pick: back in time, at most `lanes` a layer,
        first come first served."""
        n = self.count
        passed = start_s + span_s * (self._layer[:n] + 0.5) / self.layers
        found = np.flatnonzero(self._ready[:n] <= passed)
        if self._rows[found].sum() <= lanes:
            return found
        found = found[np.argsort(self._ready[found], kind="stable")]
        by_layer = found[np.argsort(self._layer[found], kind="stable")]
        layers, rows = self._layer[by_layer], self._rows[by_layer]
        before = np.cumsum(rows) - rows
        within = before - before[np.searchsorted(layers, layers)]  # of their layer, before each
        return by_layer[within + rows <= lanes]

    def joined(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows per layer [layers]."""
        counted = np.repeat(self._layer[rows], self._rows[rows])
        return np.bincount(counted, minlength=self.layers)

    def advance(
        self, rows: NDArray[np.int64], start_s: float, span_s: float, window_s: float = 0.0
    ) -> list[int]:
        """These rows joined: they leave again at the next layer, and join there at once where their
        attention is back within `window_s`; handles of those past the last layer."""
        done: list[NDArray[np.int64]] = []
        while len(rows):
            self.joins += len(rows)
            self._layer[rows] += 1
            ended = self._layer[rows] == self.layers
            done.append(rows[ended])
            rows = rows[~ended]
            at = start_s + span_s * (self._layer[rows] + 0.5) / self.layers
            self._ready[rows] = self.hosts.submit(self._host[rows], at, self._tokens[rows])
            rows = rows[self._ready[rows] <= at + window_s]
            self.same_iteration_joins += len(rows)
        return self._land(np.concatenate(done)) if done else []

    def _land(self, done: NDArray[np.int64]) -> list[int]:
        landed = [int(handle) for handle in self._handle[done]]
        if len(done):
            keep = np.ones(self.count, bool)
            keep[done] = False
            self._keep(np.flatnonzero(keep))
        return landed

    def sweep(self, start_s: float, dense_s: float, end_s: float, lanes: int) -> Swept:
        """A pass without LS rows, in which layers wait for their rows. Ends early at `end_s`, when
        work comes in."""
        seconds, landed = 0.0, []
        n = self.count
        late = max(0.0, float((self._ready[:n]).min()) - start_s) if n else 0.0
        seconds += min(late, 0.02)
        first = int(self._layer[:n].min()) if n else 0
        joined = [0.0] * first
        for layer in range(first, self.layers):
            here = np.flatnonzero(self._layer[: self.count] == layer)
            here = here[np.cumsum(self._rows[here]) <= lanes]
            host_s = self.hosts.layer_s(self._host[here], self._tokens[here])
            seconds += dense_s + host_s
            joined.append(float(self._rows[here].sum()))
            self.joins += len(here)
            self.hosts.busy_s += host_s
            self.hosts.cross(self._host[here])
            self._layer[here] += 1
            self._ready[here] = start_s + seconds
            if layer + 1 == self.layers:
                landed = self._land(here)
            if start_s + seconds >= end_s:
                break
        return Swept(seconds, landed, joined)

    @property
    def rows(self) -> int:
        """In flight, guesses among them."""
        return int(self._rows[: self.count].sum())

    @property
    def longest(self) -> int:
        """Most rows that go together."""
        return int(self._rows[: self.count].max(initial=1))

    def layer_s(self) -> float:
        """Seconds that the hosts take for one layer of all rows, for a device that waits."""
        return self.hosts.layer_s(self._host[: self.count], self._tokens[: self.count])

    def land_all(self) -> list[int]:
        """A device that waits brings every row to its end."""
        landed = [int(handle) for handle in self._handle[: self.count]]
        self.joins += self.count * self.layers
        self.hosts.cross(self._host[: self.count], self.layers)
        self.count = 0
        return landed
