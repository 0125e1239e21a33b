"""Host attention in virtual time: every host serves its rows in the order of their submission."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from omniserve_agent.simulation.hardware import HostPool, ModelShape

Floats = NDArray[np.float64]
ITEM_S = 3e-6  # of one row: rings, wake-up, the kernel's own start


def in_order(free_s: float, submitted_s: Floats, service_s: Floats) -> Floats:
    """Completion times of one server that is free at `free_s`: c_k = max(c_k-1, s_k) + w_k."""
    work = np.cumsum(service_s)
    starts = np.maximum.accumulate(np.maximum(submitted_s, free_s) - (work - service_s))
    return starts + work


@dataclass
class Hosts:
    """All hosts of an engine, and until when each is busy."""

    pools: tuple[HostPool, ...]
    shape: ModelShape
    busy_s: float = 0.0  # summed over hosts
    _free_s: list[float] = field(init=False)
    _link_free_s: list[float] = field(init=False)

    def __post_init__(self) -> None:
        self._free_s = [0.0] * len(self.pools)
        self._link_free_s = [0.0] * len(self.pools)

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
            crossing = np.full_like(at_s, self.shape.hop_bytes / pool.link_bytes_per_s)
            sent = in_order(self._link_free_s[number], at_s, crossing)
            self._link_free_s[number] = float(sent[-1])
            arrived = sent + pool.link_latency_s
        done = in_order(self._free_s[number], arrived, service)
        self._free_s[number] = float(done[-1])
        self.busy_s += float(service.sum())
        return done if pool.link_bytes_per_s is None else done + pool.link_latency_s

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
                seconds += 2 * pool.link_latency_s
                seconds = max(seconds, rows * self.shape.hop_bytes / pool.link_bytes_per_s)
            longest = max(longest, seconds)
        return longest
