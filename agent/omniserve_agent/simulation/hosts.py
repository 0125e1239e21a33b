"""Host attention in virtual time: every host serves its rows in the order of their submission.

q, k and v of rows for a remote host cross its link, and o comes back over it (`links.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from omniserve_agent.simulation.hardware import HostPool, ModelShape
from omniserve_agent.simulation.links import Floats, Link, in_order

ITEM_S = 3e-6  # of one row: rings, wake-up, the kernel's own start


@dataclass
class Hosts:
    """All hosts of an engine, until when each is busy, and the links to and from each."""

    pools: tuple[HostPool, ...]
    shape: ModelShape
    copy_bytes_per_s: float  # of KV between the device and its own host, each way
    busy_s: float = 0.0  # summed over hosts
    there: list[Link] = field(init=False)
    back: list[Link] = field(init=False)
    _free_s: list[float] = field(init=False)

    def __post_init__(self) -> None:
        self._free_s = [0.0] * len(self.pools)
        self.there = [Link(self._link_rate(pool)) for pool in self.pools]
        self.back = [Link(self._link_rate(pool)) for pool in self.pools]

    def _link_rate(self, pool: HostPool) -> float:
        network = pool.link_bytes_per_s
        return self.copy_bytes_per_s if network is None else min(network, self.copy_bytes_per_s)

    def submit(self, host: NDArray[np.int64], at_s: Floats, tokens: Floats) -> Floats:
        """When the attention of rows of `tokens` tokens at one layer, sent at `at_s`, is back."""
        back = np.empty_like(at_s)
        for number, pool in enumerate(self.pools):
            mine = np.flatnonzero(host == number)
            if len(mine):
                mine = mine[np.argsort(at_s[mine], kind="stable")]
                back[mine] = self._serve(number, pool, at_s[mine], tokens[mine])
        return back

    def _serve(self, number: int, pool: HostPool, at_s: Floats, tokens: Floats) -> Floats:
        kv_bytes = self.shape.kv_bytes / self.shape.layers
        service = tokens * kv_bytes / pool.read_bytes_per_s + ITEM_S
        arrived = at_s
        if pool.link_bytes_per_s is not None:
            arrived = self.there[number].rows(at_s, self.shape.hop_bytes_there)
            arrived = arrived + pool.link_latency_s
        done = in_order(self._free_s[number], arrived, service)
        self._free_s[number] = float(done[-1])
        self.busy_s += float(service.sum())
        if pool.link_bytes_per_s is None:
            return done
        return self.back[number].rows(done, self.shape.hop_bytes_back) + pool.link_latency_s

    def layer_s(self, host: NDArray[np.int64], tokens: Floats) -> float:
        """How long the slowest host takes for one layer of these rows, all there at once."""
        if len(host) == 0:
            return 0.0
        kv_bytes = self.shape.kv_bytes / self.shape.layers
        longest = 0.0
        for number, pool in enumerate(self.pools):
            mine = host == number
            rows = int(mine.sum())
            if rows == 0:
                continue
            seconds = float(tokens[mine].sum()) * kv_bytes / pool.read_bytes_per_s + rows * ITEM_S
            if pool.link_bytes_per_s is not None:
                most = max(self.shape.hop_bytes_there, self.shape.hop_bytes_back)
                seconds += 2 * pool.link_latency_s
                seconds = max(seconds, rows * most / self.there[number].bytes_per_s)
            longest = max(longest, seconds)
        return longest

    def cross(self, host: NDArray[np.int64], layers: int = 1) -> None:
        """Rows for which a device waited (`layer_s`) had the links to themselves meanwhile."""
        for number, pool in enumerate(self.pools):
            if pool.link_bytes_per_s is not None:
                rows = layers * int(np.count_nonzero(host == number))
                self.there[number].give_way(rows, self.shape.hop_bytes_there)
                self.back[number].give_way(rows, self.shape.hop_bytes_back)
