"""What attending a common prefix once brings: workers' time per row with and without, in turn.

Rows of a family have the same blocks in front and a suffix of their own. Without: one block within
the least run differs, so that nobody is grouped, and everything else is the same memory. Families
take turns, so that no prefix is in a cache when its family comes. `bench/out/shared_prefix.json`.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

import report
from omniserve_native import Arena, ArenaConfig, DType, Exchange, ExchangeConfig, Workers

KV_BYTES = 96 << 20  # of all families' prefixes
MOST_FAMILIES = 256
BATCH_ROWS = 128  # submitted at once, whole families
KV_HEADS, SUFFIX, BLOCK = 4, 128, 16
LEAST_BLOCKS_A_HEAD = 16  # of native/src/share.c
POLL_S = 2e-4


@dataclass(frozen=True)
class Shape:
    """One line of the table."""

    group: int
    head_size: int
    rows: int
    prefix: int
    dtype: DType = DType.BF16

    @property
    def prefix_bytes(self) -> int:
        """KV of one family's prefix."""
        return self.prefix * KV_HEADS * 2 * self.dtype.head_bytes(self.head_size)

    @property
    def families(self) -> int:
        """As many as make KV_BYTES."""
        return max(2, min(MOST_FAMILIES, KV_BYTES // self.prefix_bytes))


class Side:
    """Families in slots; `grouped`: whether their tables allow it."""

    def __init__(self, shape: Shape, arena: Arena, workers: Workers, grouped: bool) -> None:
        self.shape = shape
        rows = shape.families * shape.rows
        q_heads = shape.group * KV_HEADS
        config = ExchangeConfig(rows, q_heads, 8, DType.BF16, 0.1, host_residual=False)
        self.exchange = Exchange(config, arena, workers)
        self.slots = np.arange(rows, dtype=np.int32)
        self.widths = q_heads * shape.head_size, KV_HEADS * shape.head_size
        self.q = np.full((BATCH_ROWS, self.widths[0]), 0x3F00, np.uint16)
        self.k = np.zeros((BATCH_ROWS, self.widths[1]), np.uint16)
        self.sequences = [self._open(arena, i, grouped) for i in range(rows)]

    def _open(self, arena: Arena, row: int, grouped: bool) -> int:
        """Prefix blocks by family, then the row's own; one more to differ by."""
        shape = self.shape
        prefix, suffix = shape.prefix // BLOCK, SUFFIX // BLOCK + 2
        first = row // shape.rows * prefix
        table = np.arange(first, first + prefix)
        own = shape.families * prefix + row * suffix + np.arange(suffix)
        if not grouped:
            table[min(LEAST_BLOCKS_A_HEAD * shape.group, prefix) - 1] = own[-1]
        sequence = arena.open_sequence()
        arena.set_blocks(sequence, 0, np.concatenate([table, own[:-1]]))
        arena.truncate(sequence, shape.prefix + SUFFIX)
        assert self.exchange.open_slot(sequence) == row
        arena.release_sequence(sequence)
        return sequence

    def busy_us(self) -> float:
        """The workers' time per row, over all families once."""
        batch = BATCH_ROWS // self.shape.rows * self.shape.rows
        for slot in self.slots.tolist():
            self.exchange.begin(slot, self.shape.prefix + SUFFIX, 1)
        before = self.exchange.workers.stats().busy_ns
        for first in range(0, len(self.slots), batch):
            self._run(self.slots[first : first + batch])
        return (self.exchange.workers.stats().busy_ns - before) / 1000 / len(self.slots)

    def _run(self, slots: npt.NDArray[np.int32]) -> None:
        """One batch. Who waits in `pick` is woken by every completion, in the workers' time."""
        q_width, kv_width = self.widths
        q, k = self.q.ctypes.data, self.k.ctypes.data
        back, positions = np.zeros_like(slots), np.zeros(len(slots), np.int64)
        self.exchange.submit(0, 0, slots, q, q_width, k, kv_width, k, kv_width)
        while self.exchange.stats().in_flight:
            time.sleep(POLL_S)
        count, _ = self.exchange.pick(
            0, 0, len(slots), 0, back, q, q_width, positions=positions.ctypes.data
        )
        assert count == len(slots)


def measure(shape: Shape, workers: Workers, turns: int) -> dict[str, float]:
    """The least of the turns: what else happens on the machine only adds."""
    rows = shape.families * shape.rows
    suffix = SUFFIX // BLOCK + 2
    blocks = shape.families * shape.prefix // BLOCK + rows * suffix
    per_row = shape.prefix // BLOCK + suffix
    config = ArenaConfig(1, KV_HEADS, shape.head_size, blocks, 2 * rows, per_row, shape.dtype)
    with Arena(config) as arena:
        arena.prefault()
        sides = [Side(shape, arena, workers, grouped) for grouped in (True, False)]
        times = [[side.busy_us() for side in sides] for _ in range(turns)]
        for side in sides:
            side.exchange.close()
    grouped_us, alone_us = (min(side) for side in zip(*times, strict=True))
    return {"grouped_us": grouped_us, "alone_us": alone_us, "ratio": alone_us / grouped_us}


def shapes(options: argparse.Namespace) -> list[Shape]:
    """The product of what was asked for."""
    return [
        Shape(group, size, rows, prefix, DType[options.dtype])
        for size in options.head_sizes
        for group in options.groups
        for prefix in options.prefixes
        for rows in options.rows
    ]


def parse() -> argparse.Namespace:
    """Lists of the dimensions."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (
        ("groups", [1, 3, 4, 8]),
        ("head-sizes", [64, 128]),
        ("rows", [2, 4, 8]),
        ("prefixes", [512, 2048, 8192]),
    ):
        parser.add_argument(f"--{name}", type=int, nargs="+", default=default)
    parser.add_argument("--dtype", choices=["BF16", "I8"], default="BF16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=9)
    return parser.parse_args()


def main() -> None:
    """Workers on the last cores, this thread on the first."""
    options, cores = parse(), sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[0]})
    table = Table("group", "head size", "prefix", "rows", "alone, µs a row", "together", "times")
    rows = []
    with Workers(options.threads, cores=cores[-options.threads :], spin_ns=100_000) as workers:
        for shape in shapes(options):
            figures = measure(shape, workers, options.turns)
            about = {"dtype": shape.dtype.name, "threads": options.threads}
            rows.append(vars(shape) | about | figures)
            table.add_row(
                *(str(n) for n in (shape.group, shape.head_size, shape.prefix, shape.rows)),
                *(f"{figures[name]:.1f}" for name in ("alone_us", "grouped_us")),
                f"{figures['ratio']:.2f}",
            )
    Console(width=110).print(table)
    report.write("shared_prefix", {"rows": rows}, seed=0)


if __name__ == "__main__":
    main()
