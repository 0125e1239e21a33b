"""The critical path of joins: os_layer with offloaded rows coming and going, and without."""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import asdict, dataclass

import numpy as np

from omniserve_agent.node.cores import OWN_SPIN_US
from omniserve_native import (
    Arena,
    ArenaConfig,
    DType,
    Exchange,
    ExchangeConfig,
    LayerCall,
    Workers,
)

# SmolLM2-135M
LAYERS, Q_HEADS, KV_HEADS, HEAD_SIZE, HIDDEN = 30, 9, 3, 64, 576
SCALE = HEAD_SIZE**-0.5
SLOTS = 400
LANES = 16  # per layer: 400 slots over 30 layers, and some
# A join's copies: q, k, v and residual leave, o and residual come back.
JOIN_BYTES = 2 * (2 * Q_HEADS * HEAD_SIZE + 2 * KV_HEADS * HEAD_SIZE + 2 * HIDDEN)
COPY_BYTES = 64 << 20
CONTEXT = 64
MAX_TOKENS = 256
DENSE_US = 300  # the dense modules' time between two layers' calls, spent waiting
WARM_UP = 5
SPIN_NS = 1000 * OWN_SPIN_US  # as the engine's workers on cores of their own


@dataclass(frozen=True)
class JoinCosts:
    """Medians over iterations; `added` = with joins − without. `allowed`: the target, 3 µs and
    the bytes at the speed of a large copy."""

    slots: int
    iterations: int
    joins_per_iteration: float
    layer_us: float
    layer_us_without: float
    iteration_us: float  # calls of all layers and the token boundaries
    iteration_us_without: float
    added_us_per_iteration: float
    added_us_per_join: float
    added_us_per_layer: float
    allowed_us_per_layer: float
    copy_gbps: float

    def json(self) -> dict[str, float]:
        """As in the result file."""
        return asdict(self)


class JoinLoop:
    """A layer loop with no device rows: what remains is the exchange's cost and the call's."""

    def __init__(self, workers: Workers) -> None:
        blocks = MAX_TOKENS // 16
        shape = (LAYERS, KV_HEADS, HEAD_SIZE, SLOTS * blocks, SLOTS, blocks)
        self.arena = Arena(ArenaConfig(*shape, DType.BF16))
        self.arena.prefault()
        config = ExchangeConfig(SLOTS, Q_HEADS, HIDDEN, DType.BF16, SCALE)
        self.exchange = Exchange(config, self.arena, workers)
        self.call = LayerCall(
            self.arena,
            Q_HEADS,
            DType.BF16,
            SCALE,
            capacity_rows=LANES,
            max_segments=1,
            exchange=self.exchange,
        )
        widths = Q_HEADS * HEAD_SIZE, KV_HEADS * HEAD_SIZE, KV_HEADS * HEAD_SIZE
        strides = (*widths, Q_HEADS * HEAD_SIZE, HIDDEN)
        self.call.set_strides(*strides)
        self._rows = [np.zeros((LANES, width), np.uint16) for width in strides]
        q, k, v, o, residual = (rows.ctypes.data for rows in self._rows)
        self.addresses = (q, k, v, o, residual)
        self._positions = np.full(SLOTS, CONTEXT)

    def fill(self, count: int) -> None:
        """So many slots in flight, spread over the layers."""
        blocks = MAX_TOKENS // 16
        q, k, v, _, residual = self.addresses
        for i in range(count):
            sequence = self.arena.open_sequence()
            self.arena.set_blocks(sequence, 0, range(i * blocks, (i + 1) * blocks))
            self.arena.truncate(sequence, CONTEXT)
            slot = self.exchange.open_slot(sequence)
            self.exchange.begin(slot, CONTEXT, 1)
            slots = np.array([slot], np.int32)
            kv_width, q_width = KV_HEADS * HEAD_SIZE, Q_HEADS * HEAD_SIZE
            rows = (q, q_width, k, kv_width, v, kv_width)
            self.exchange.submit(i % LAYERS, 0, slots, *rows, residual, HIDDEN)

    def iteration(self, number: int) -> tuple[int, list[int]]:
        """Joins, and ns of each layer's call (the last entry: the token boundaries)."""
        joins, times = 0, []
        for layer in range(LAYERS):
            until = time.perf_counter_ns() + DENSE_US * 1000
            while time.perf_counter_ns() < until:
                pass
            begin = time.perf_counter_ns()
            count, _ = self.call.run(layer, number, *self.addresses, LANES)
            times.append(time.perf_counter_ns() - begin)
            joins += count
        begin = time.perf_counter_ns()
        for slot in self.call.tail_slots[:count].tolist():
            self._positions[slot] += 1
            self.exchange.begin(slot, int(self._positions[slot]), 1)
        times.append(time.perf_counter_ns() - begin)
        return joins, times

    def close(self) -> None:
        """Exchange first."""
        self.exchange.close()
        self.arena.close()


def measure(workers: Workers, iterations: int) -> JoinCosts:
    """First without slots, then with all of them in flight."""
    loop = JoinLoop(workers)
    without = [loop.iteration(i)[1] for i in range(iterations + WARM_UP)][WARM_UP:]
    loop.fill(SLOTS)
    runs = [loop.iteration(1000 + i) for i in range(iterations + WARM_UP)][WARM_UP:]
    loop.close()
    joins = statistics.mean(run[0] for run in runs)
    sides = [run[1] for run in runs], without
    total, total_without = (
        statistics.median(sum(times) for times in side) / 1000 for side in sides
    )
    layer, layer_without = (
        statistics.median(value for times in side for value in times[:-1]) / 1000 for side in sides
    )
    added, speed = total - total_without, copy_gbps()
    return JoinCosts(
        SLOTS,
        iterations,
        joins,
        layer_us=layer,
        layer_us_without=layer_without,
        iteration_us=total,
        iteration_us_without=total_without,
        added_us_per_iteration=added,
        added_us_per_join=added / max(joins, 1),
        added_us_per_layer=added / LAYERS,
        allowed_us_per_layer=3 + joins / LAYERS * JOIN_BYTES / speed / 1e3,
        copy_gbps=speed,
    )


def copy_gbps() -> float:
    """Bytes copied per ns, from one large buffer to another."""
    source, target = np.ones(COPY_BYTES, np.uint8), np.zeros(COPY_BYTES, np.uint8)
    times = []
    for _ in range(7):
        begin = time.perf_counter_ns()
        np.copyto(target, source)
        times.append(time.perf_counter_ns() - begin)
    return COPY_BYTES / statistics.median(times)


def main() -> None:
    """Prints the figures alone; `make bench-kernel` has them in its result."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[0]})
    with Workers(1, cores=[cores[-1]], spin_ns=SPIN_NS) as host:
        for name, value in measure(host, 100).json().items():
            print(f"{name}: {value:.2f}")


if __name__ == "__main__":
    main()
