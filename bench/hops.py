"""What a hop takes: from its submission until a worker has taken it, and until its completion.

The rows have one token, so that next to nothing is attended. When an item was taken is the worker's
own time, of the last item: it is shown of one row with one kv head, which is one item. A submission
begins before the library is called; Python's part of the call is in the figures, below half a
microsecond, and so is the looking for the completion. `python bench/hops.py` prints them.
"""

from __future__ import annotations

import itertools
import os
import statistics
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

import joins
from omniserve_native import Arena, ArenaConfig, DType, Exchange, ExchangeConfig, Workers
from omniserve_native.library import checked, ffi, lib

GROUP = joins.Q_HEADS // joins.KV_HEADS
ROUNDS, WARM_UP = 5, 20
# Rows, kv heads, whether workers spin, hops a round.
CASES = ((1, 1, True, 400), (1, 3, True, 400), (400, 3, True, 40), (1, 1, False, 100))


@dataclass(frozen=True)
class Times:
    """Of one submission, in ns since its begin: the call's return, the last item's taking, the last
    row's completion; and how long the workers were busy with it."""

    submitted: int
    taken: int
    completed: int
    busy: int


class Hops:
    """So many slots that hop together, again and again."""

    def __init__(self, workers: Workers, rows: int, kv_heads: int) -> None:
        self.arena = Arena(ArenaConfig(1, kv_heads, joins.HEAD_SIZE, rows, rows, 1, DType.BF16))
        self.arena.prefault()
        q_heads, hidden = kv_heads * GROUP, joins.HIDDEN
        config = ExchangeConfig(rows, q_heads, hidden, DType.BF16, joins.SCALE)
        self.exchange, self.workers = Exchange(config, self.arena, workers), workers
        for row in range(rows):
            sequence = self.arena.open_sequence()
            self.arena.set_blocks(sequence, 0, [row])
            self.exchange.open_slot(sequence)
        self._slots, self._positions = np.arange(rows, dtype=np.int32), np.zeros(rows, np.int64)
        widths = (q_heads * joins.HEAD_SIZE, *(kv_heads * joins.HEAD_SIZE,) * 2, hidden)
        self._rows = [np.zeros((rows, width), np.uint16) for width in widths]
        places = [(ffi.cast("void *", at.ctypes.data), at.shape[1]) for at in self._rows]
        slots = ffi.cast("int32_t *", self._slots.ctypes.data)
        self._submission = [self.exchange.handle, 0, 0, rows, slots, *itertools.chain(*places)]
        self._stats = ffi.new("os_exchange_stats *")

    def hop(self) -> Times:
        """There and back once."""
        for slot in range(len(self._slots)):
            self.exchange.begin(slot, 0, 1)
        busy = self.workers.stats().busy_ns
        handle, stats, look = self.exchange.handle, self._stats, lib.os_exchange_get_stats
        begin = time.perf_counter_ns()  # the monotonic clock, as the workers'
        checked(lib.os_exchange_submit(*self._submission))
        submitted = time.perf_counter_ns()
        look(handle, stats)
        while stats.in_flight:
            look(handle, stats)
        end = time.perf_counter_ns()
        self._pick()
        seen = self.workers.stats()
        return Times(submitted - begin, seen.taken_ns - begin, end - begin, seen.busy_ns - busy)

    def _pick(self) -> None:
        """Everything that has come back."""
        o, residual = self._rows[0], self._rows[3]
        count, _ = self.exchange.pick(
            0,
            0,
            len(self._slots),
            0,
            np.empty_like(self._slots),
            o.ctypes.data,
            o.shape[1],
            residual.ctypes.data,
            residual.shape[1],
            positions=self._positions.ctypes.data,
        )
        if count != len(self._slots):
            raise RuntimeError(f"{count} of {len(self._slots)} rows came back")

    def close(self) -> None:
        """Exchange first."""
        self.exchange.close()
        self.arena.close()


def measure(core: int) -> list[dict[str, Any]]:
    """Every case, with a worker on that core."""
    found = []
    for rows, kv_heads, spinning, count in CASES:
        spin_ns = joins.SPIN_NS if spinning else 0
        with Workers(1, cores=[core], spin_ns=spin_ns) as workers:
            hops = Hops(workers, rows, kv_heads)
            rounds = [[hops.hop() for _ in range(count + WARM_UP)][WARM_UP:] for _ in range(ROUNDS)]
            hops.close()
        case = {"rows": rows, "kv_heads": kv_heads, "spinning": spinning, "hops": ROUNDS * count}
        found.append(case | figures(rounds, one_item=rows * kv_heads == 1))
    return found


def figures(rounds: list[list[Times]], *, one_item: bool) -> dict[str, Any]:
    """In us: the median of all hops, the least and largest of the rounds' medians, and what 99 of
    100 hops do not exceed."""
    found: dict[str, Any] = {}
    for name in ("submitted", "completed", "busy", *(("taken",) if one_item else ())):
        times = [[getattr(one, name) / 1000 for one in some] for some in rounds]
        medians = [statistics.median(some) for some in times]
        ordered = sorted(itertools.chain(*times))
        found[f"{name}_us"] = statistics.median(ordered)
        found[f"{name}_us_range"] = [min(medians), max(medians)]
        found[f"{name}_us_p99"] = ordered[len(ordered) * 99 // 100]
    return found


def main() -> None:
    """Prints; this thread on the first core, the worker on the last."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[0]})
    for case in measure(cores[-1]):
        print(case)


if __name__ == "__main__":
    main()
