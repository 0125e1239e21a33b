"""`make bench-kernel`: decode attention's GB/s, each KV byte counted once, against the read roof.

Roof and kernel take turns on the same cores; a fraction is the median over the turns. Peers come
with the kernel issue: their ratios are null. Results: bench/out/kernel.json and a table.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

import joins
import report
from omniserve_native import Arena, ArenaConfig, AttendCall, DType, Workers, isa_name
from roof import Roof

KV_BYTES = 256 << 20  # of one shape: far beyond L3
STORAGE = {DType.F32: np.float32, DType.BF16: np.uint16, DType.F16: np.float16}


@dataclass(frozen=True)
class Shape:
    """One row of the table; `kv_heads` as in the models that have this group and head size."""

    group: int
    head_size: int
    kv_heads: int
    dtype: DType = DType.BF16
    context: int = 1024
    q_len: int = 1

    @property
    def bytes_per_row(self) -> int:
        """KV bytes that one row reads."""
        tokens = self.context + self.q_len
        return tokens * self.kv_heads * self.head_size * 2 * self.dtype.bytes

    @property
    def rows(self) -> int:
        """As many as make KV_BYTES."""
        return max(1, KV_BYTES // self.bytes_per_row)


GRID = [
    Shape(3, 64, 3),
    Shape(3, 64, 3, q_len=4),
    Shape(3, 64, 3, context=8000),
    Shape(1, 128, 8),
    Shape(4, 128, 8),
    Shape(4, 128, 8, q_len=4),
    Shape(4, 128, 8, context=8192),
    Shape(7, 128, 4),
    Shape(8, 128, 8),
    Shape(4, 128, 8, dtype=DType.F16),
    Shape(4, 128, 8, dtype=DType.F32),
]


def encode(values: npt.NDArray[np.float32], dtype: DType) -> npt.NDArray[Any]:
    """As stored; bf16 by cutting off (the inputs are random anyway)."""
    if dtype is DType.BF16:
        return (np.ascontiguousarray(values).view(np.uint32) >> 16).astype(np.uint16)
    return np.ascontiguousarray(values, STORAGE[dtype])


def decode(raw: npt.NDArray[Any], dtype: DType) -> npt.NDArray[np.float64]:
    """The values that were stored."""
    if dtype is DType.BF16:
        return (raw.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return raw.astype(np.float64)


class Problem:
    """A shape's arena, filled; every row has the same KV at blocks of its own, in random order."""

    def __init__(self, shape: Shape, workers: Workers | None, seed: int) -> None:
        self.shape = shape
        random = np.random.default_rng(seed)
        per_row = -(-(shape.context + shape.q_len) // 16)
        blocks = per_row * shape.rows
        heads = (shape.kv_heads, shape.head_size)
        config = ArenaConfig(1, *heads, blocks, shape.rows, per_row, shape.dtype)
        self.arena = Arena(config)
        self.arena.prefault()
        tokens = shape.context + shape.q_len
        draw = [random.standard_normal((tokens, *heads)).astype(np.float32) for _ in "kv"]
        self.k, self.v = (encode(values, shape.dtype) for values in draw)
        order = random.permutation(blocks).astype(np.int32).reshape(shape.rows, per_row)
        for table in order:
            sequence = self.arena.open_sequence()
            self.arena.set_blocks(sequence, 0, table)
            addresses = self.k.ctypes.data, self.v.ctypes.data
            self.arena.import_tokens(sequence, 0, 0, shape.context, *addresses)
        self._make_call(random, workers)

    def _make_call(self, random: np.random.Generator, workers: Workers | None) -> None:
        shape = self.shape
        q_heads = shape.kv_heads * shape.group
        count = shape.rows * shape.q_len
        q = random.standard_normal((count, q_heads, shape.head_size)).astype(np.float32)
        own = [np.tile(side[shape.context :], (shape.rows, 1, 1)) for side in (self.k, self.v)]
        self.q = encode(q, shape.dtype)
        self.o = np.zeros_like(self.q)
        self._own = own
        self.scale = shape.head_size**-0.5
        self.call = AttendCall(self.arena, q_heads, shape.dtype, self.scale, shape.rows, workers)
        rows = np.arange(shape.rows)
        self.call.set_segments(
            rows, np.full_like(rows, shape.q_len), np.full_like(rows, shape.context)
        )
        width = shape.kv_heads * shape.head_size
        self.call.set_strides(width * shape.group, width, width, width * shape.group)

    def gbps(self) -> float:
        """Of one call over all rows."""
        addresses = [array.ctypes.data for array in (self.q, *self._own, self.o)]
        begin = time.perf_counter()
        self.call.run(0, *addresses)
        return self.shape.rows * self.shape.bytes_per_row / (time.perf_counter() - begin) / 1e9

    def max_error(self) -> float:
        """Of the last row's last query against float64, over max |V|."""
        shape = self.shape
        q = decode(self.q[-1], shape.dtype)
        k, v = (decode(side, shape.dtype) for side in (self.k, self.v))
        k, v = (np.repeat(side, shape.group, axis=1) for side in (k, v))
        scores = self.scale * np.einsum("hd,khd->hk", q, k)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        right = np.einsum("hk,khd->hd", weights / weights.sum(axis=-1, keepdims=True), v)
        return float(np.abs(decode(self.o[-1], shape.dtype) - right).max() / np.abs(v).max())


def measure(
    shape: Shape, roof: Roof, workers: Workers | None, args: argparse.Namespace
) -> dict[str, Any]:
    """One row of the result file."""
    problem = Problem(shape, workers, args.seed)
    threads = 1 + (workers.count if workers else 0)
    problem.gbps()  # warm
    turns = [(roof.gbps(threads), problem.gbps()) for _ in range(args.turns)]
    error = problem.max_error()
    problem.arena.close()
    return {
        "isa": isa_name(),
        "group": shape.group,
        "q_len": shape.q_len,
        "head_size": shape.head_size,
        "context": shape.context,
        "rows": shape.rows,
        "dtype": shape.dtype.name.lower(),
        "threads": threads,
        "gbps": statistics.median(own for _, own in turns),
        "roof_fraction": statistics.median(own / top for top, own in turns),
        "ratio_vllm": None,
        "ratio_torch": None,
        "ratio_neo_like": None,
        "max_error": error,
    }


def table_of(rows: list[dict[str, Any]]) -> Table:
    """What the terminal shows."""
    table = Table(title=f"decode attention, {isa_name()}")
    columns = ["dtype", "group", "head_size", "q_len", "context", "rows", "threads"]
    for name in [*columns, "GB/s", "of roof", "error"]:
        table.add_column(name.replace("_", " "), justify="right")
    for row in rows:
        figures = f"{row['gbps']:.1f}", f"{row['roof_fraction']:.0%}", f"{row['max_error']:.0e}"
        table.add_row(*(str(row[name]) for name in columns), *figures)
    return table


def measure_all(args: argparse.Namespace, cores: list[int]) -> dict[str, Any]:
    """Everything that kernel.json holds beside its head."""
    os.sched_setaffinity(0, {cores[0]})
    others = Workers(len(cores) - 1, cores=cores[1:]) if len(cores) > 1 else None
    sides = [None, others] if others else [None]
    grid = GRID[:3] if args.quick else GRID
    with Roof(cores) as roof:
        one, every = ([roof.gbps(n) for _ in range(args.turns)] for n in (1, len(cores)))
        rows = [measure(shape, roof, side, args) for shape in grid for side in sides]
    if others:
        others.close()
    with Workers(1, cores=[cores[-1]]) as host:
        costs = joins.measure(host, args.iterations)
    return {
        "roof_gbps_one": statistics.median(one),
        "roof_gbps_all": statistics.median(every),
        "rows": rows,
        "joins": costs.json(),
    }


def parse() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=5, help="roof and kernel alternate this often")
    parser.add_argument("--iterations", type=int, default=100, help="iterations of the join loop")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="three shapes only")
    return parser.parse_args()


def main() -> None:
    """Measures, prints, writes."""
    args = parse()
    figures = measure_all(args, sorted(os.sched_getaffinity(0)))
    console = Console()
    console.print(table_of(figures["rows"]))
    console.print(
        f"read roof: {figures['roof_gbps_one']:.1f} GB/s one core, "
        f"{figures['roof_gbps_all']:.1f} GB/s all"
    )
    console.print("joins over 30 layers:", figures["joins"])
    console.print(f"written: {report.write('kernel', figures, seed=args.seed)}")


if __name__ == "__main__":
    main()
