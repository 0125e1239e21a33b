"""`make bench-kernel`: decode attention's GB/s, each KV byte counted once, against the read roof.

Roof, kernel and peers (vLLM's CPU attention, torch, a NEO-like reference) take turns on the same
cores; a ratio is the median over the turns. The grid is a sample: every dimension of the issue
around a few shapes, in less than ten minutes on two cores. Every ISA path that this machine has
runs in a process of its own. Results: bench/out/kernel.json, kernel.png and tables. --quick
measures the short grid.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

import joins
import kernel_plot
import kernel_targets
import report
from kernel_peers import NeoLike, NeoProblem, PeerFailedError, TorchProblem, VllmAttention
from omniserve_native import Arena, ArenaConfig, AttendCall, DType, Workers, isa_name
from peers import vllm
from roof import Roof

Sides = dict[int, Workers | None]

KV_BYTES = 192 << 20  # of one shape: its cache lines do not survive a turn of the roof's buffers
PATHS = ("avx512_bf16", "avx512_vnni", "avx512", "avx2", "portable")
PEERS = ("vllm", "torch", "neo_like")
PATH_TIMEOUT_S = 1200
MIXED_ROWS = 256
STORAGE = {DType.F32: np.float32, DType.BF16: np.uint16, DType.F16: np.float16}


@dataclass(frozen=True)
class Shape:
    """One row of the table; `kv_heads` as in the models that have this group and head size."""

    group: int
    head_size: int
    kv_heads: int
    dtype: DType = DType.BF16
    context: int = 2048
    q_len: int = 1
    most_rows: int = 1 << 20
    mixed: bool = False  # row i has about (i % 8 + 1) / 8 of the context

    @property
    def bytes_per_row(self) -> int:
        """KV bytes that the longest row reads."""
        return self.bytes_of(self.context)

    def bytes_of(self, context: int) -> int:
        """KV bytes that a row reads, its own tokens and int8's scales included."""
        tokens = context + self.q_len
        return tokens * self.kv_heads * 2 * self.dtype.head_bytes(self.head_size)

    @property
    def contexts(self) -> list[int]:
        """Of every row."""
        eighths = [(i % 8 + 1) if self.mixed else 8 for i in range(self.rows)]
        return [self.context * n // 8 for n in eighths]

    @property
    def total_bytes(self) -> int:
        """Of one call."""
        return sum(self.bytes_of(context) for context in self.contexts)

    @property
    def row_dtype(self) -> DType:
        """Of q, k, v and o."""
        return DType.BF16 if self.dtype is DType.I8 else self.dtype

    @property
    def rows(self) -> int:
        """As many as make KV_BYTES, at most `most_rows`."""
        return min(self.most_rows, max(1, KV_BYTES // self.bytes_per_row))


def grid() -> list[Shape]:
    """Every dimension of the issue around one shape: group 4, head size 128, context 2048, bf16."""
    shapes = [Shape(group, 128, 8) for group in (1, 3, 4, 5, 7, 8, 16)]
    shapes += [Shape(g, 128, 8, q_len=n) for g in (1, 3, 4, 8) for n in (2, 4, 8)]
    shapes += [Shape(g, size, 8) for g in (1, 4, 8) for size in (64, 96, 256)]
    shapes += [Shape(3, 64, 3), Shape(3, 64, 3, q_len=4)]  # SmolLM2
    shapes += [Shape(4, 128, 8, context=n) for n in (128, 512, 8192, 32768)]
    shapes += [Shape(4, 128, 8, context=8192, most_rows=n) for n in (1, 4)]
    shapes += [Shape(4, 128, 2, context=1024, most_rows=MIXED_ROWS, mixed=True)]
    kinds = DType.F16, DType.I8, DType.F32
    shapes += [Shape(g, 128, 8, dtype=kind) for kind in kinds for g in (1, 4, 8)]
    shapes += [Shape(g, 64, 8, dtype=DType.I8) for g in (1, 4, 8)]
    shapes += [Shape(4, 128, 8, dtype=kind, q_len=4) for kind in kinds[:2]]
    return shapes


def short_grid() -> list[Shape]:
    """What the other paths and --quick measure."""
    kinds = DType.BF16, DType.I8
    shapes = [Shape(group, 128, 8, dtype=kind) for kind in kinds for group in (1, 4, 8)]
    return [*shapes, Shape(4, 128, 8, q_len=4), Shape(4, 128, 8, dtype=DType.F16)]


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
    """A shape's arena, filled; every row has the same KV at blocks of its own, in random order.
    `sides`: by number of threads, the workers beside the caller."""

    def __init__(self, shape: Shape, sides: Sides, seed: int) -> None:
        self.shape = shape
        random = np.random.default_rng(seed)
        per_row = -(-(shape.context + shape.q_len) // 16)
        blocks = -(-per_row // 8) * 8 * shape.rows
        heads = (shape.kv_heads, shape.head_size)
        config = ArenaConfig(1, *heads, blocks, shape.rows, per_row, shape.dtype)
        self.arena = Arena(config)
        self.arena.prefault()
        tokens = shape.context + shape.q_len
        draw = [random.standard_normal((tokens, *heads), np.float32) for _ in "kv"]
        self.k, self.v = (encode(values, shape.row_dtype) for values in draw)
        runs = -(-per_row // 8)  # the engine's pool gives out blocks in runs of eight
        order = random.permutation(runs * shape.rows)
        table = (order[:, None] * 8 + np.arange(8)).reshape(shape.rows, -1)
        for row in np.ascontiguousarray(table[:, :per_row], np.int32):
            sequence = self.arena.open_sequence()
            self.arena.set_blocks(sequence, 0, row)
            addresses = self.k.ctypes.data, self.v.ctypes.data
            self.arena.append(sequence, 0, 0, tokens, *addresses, dtype=shape.row_dtype)
        size = (shape.rows * shape.q_len, shape.kv_heads * shape.group, shape.head_size)
        self.q = encode(random.standard_normal(size, np.float32), shape.row_dtype)
        self.o = np.zeros_like(self.q)
        self.scale = shape.head_size**-0.5
        self.calls = {threads: self._call(workers) for threads, workers in sides.items()}

    def _call(self, workers: Workers | None) -> AttendCall:
        shape = self.shape
        q_heads = shape.kv_heads * shape.group
        call = AttendCall(self.arena, q_heads, shape.row_dtype, self.scale, shape.rows, workers)
        rows = np.arange(shape.rows, dtype=np.int32)
        call.set_segments(rows, np.full_like(rows, shape.q_len), np.array(shape.contexts, np.int32))
        width = shape.kv_heads * shape.head_size
        call.set_strides(width * shape.group, width, width, width * shape.group)
        return call

    def gbps(self, threads: int) -> float:
        """Of one call over all rows."""
        begin = time.perf_counter()
        self.calls[threads].run(0, self.q.ctypes.data, 0, 0, self.o.ctypes.data)
        return self.shape.total_bytes / (time.perf_counter() - begin) / 1e9

    def max_error(self) -> float:
        """Of the last row's last query against float64 over what was appended, over max |V|; for
        int8 the quantisation's error is part of it."""
        shape = self.shape
        tokens = shape.contexts[-1] + shape.q_len
        q = decode(self.q[-1], shape.row_dtype)
        k, v = (decode(side[:tokens], shape.row_dtype) for side in (self.k, self.v))
        k, v = (np.repeat(side, shape.group, axis=1) for side in (k, v))
        scores = self.scale * np.einsum("hd,khd->hk", q, k)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        right = np.einsum("hk,khd->hd", weights / weights.sum(axis=-1, keepdims=True), v)
        return float(np.abs(decode(self.o[-1], shape.row_dtype) - right).max() / np.abs(v).max())


@dataclass(frozen=True)
class Bench:
    """What every shape of one process is measured with; by number of threads where that matters."""

    roof: Roof
    sides: Sides
    pools: dict[int, ThreadPoolExecutor]  # pinned
    neo: NeoLike | None  # with the other peers, or without any
    vllm: dict[int, VllmAttention]
    args: argparse.Namespace

    def peers(self, shape: Shape) -> Callable[[int], dict[str, Callable[[], float]]]:
        """The peers' calls at a number of threads, each GB/s; decode of equal rows in bf16 only."""
        comparable = shape.dtype is DType.BF16 and shape.q_len == 1 and not shape.mixed
        if self.neo is None or not comparable:
            return lambda _: {}
        size = (shape.group, shape.kv_heads, shape.head_size, shape.context + 1, shape.rows)
        neo, sdpa = NeoProblem(self.neo, *size), TorchProblem(*size)

        def at(threads: int) -> dict[str, Callable[[], float]]:
            calls = {
                "neo_like": lambda: neo.gbps(self.pools[threads]),
                "torch": lambda: sdpa.gbps(self.roof.cores[:threads]),
            }
            if threads in self.vllm:
                try:
                    self.vllm[threads].prepare(*size)
                    calls["vllm"] = self.vllm[threads].gbps
                except PeerFailedError as error:  # of this shape; the row's ratio is null
                    print(f"{shape}: {error}", file=sys.stderr)
            return calls

        return at


def measure(shape: Shape, bench: Bench) -> list[dict[str, Any]]:
    """A row of the result file for each number of threads."""
    problem = Problem(shape, bench.sides, bench.args.seed)
    peers = bench.peers(shape)
    rows = [measure_at(threads, problem, bench, peers(threads)) for threads in bench.sides]
    problem.arena.close()
    return rows


def measure_at(
    threads: int, problem: Problem, bench: Bench, peers: dict[str, Callable[[], float]]
) -> dict[str, Any]:
    """One row."""
    shape = problem.shape
    sides: dict[str, Callable[[], float]] = {
        "roof": lambda: bench.roof.gbps(threads),
        "own": lambda: problem.gbps(threads),
        **peers,
    }
    for side in sides.values():
        side()  # warm
    turns = [{name: side() for name, side in sides.items()} for _ in range(bench.args.turns)]
    own = [turn["own"] for turn in turns]
    return {
        "isa": isa_name(),
        "group": shape.group,
        "q_len": shape.q_len,
        "head_size": shape.head_size,
        "kv_heads": shape.kv_heads,
        "context": shape.context,
        "rows": shape.rows,
        "dtype": shape.dtype.name.lower(),
        "threads": threads,
        "mixed": shape.mixed,
        "gbps": statistics.median(own),
        "gbps_range": [min(own), max(own)],
        "mtokens_per_s": statistics.median(own) * 1e3 / (shape.bytes_of(0) / shape.q_len),
        "roof_fraction": ratio(turns, "roof"),
        "ratio_vllm": ratio(turns, "vllm"),
        "ratio_torch": ratio(turns, "torch"),
        "ratio_neo_like": ratio(turns, "neo_like"),
        "max_error": problem.max_error(),
    }


def ratio(turns: list[dict[str, float]], peer: str) -> float | None:
    """Median over the turns of ours over the peer's; None where it did not run."""
    if peer not in turns[0]:
        return None
    return statistics.median(turn["own"] / turn[peer] for turn in turns)


def table_of(rows: list[dict[str, Any]]) -> Table:
    """What the terminal shows."""
    table = Table(title="decode attention, KV GB/s")
    columns = ["isa", "dtype", "group", "head_size", "q_len", "context", "rows", "threads"]
    for name in [*columns, "GB/s", "of roof", "/vLLM", "/torch", "/NEO-like", "error"]:
        table.add_column(name.replace("_", " "), justify="right")
    for row in rows:
        times = ["-" if row[f"ratio_{p}"] is None else f"{row[f'ratio_{p}']:.1f}" for p in PEERS]
        figures = f"{row['gbps']:.1f}", f"{row['roof_fraction']:.0%}", *times
        table.add_row(*(str(row[name]) for name in columns), *figures, f"{row['max_error']:.0e}")
    return table


def pinned(cores: list[int]) -> ThreadPoolExecutor:
    """A pool with one thread on each core."""
    waiting = list(cores)
    return ThreadPoolExecutor(
        len(cores), initializer=lambda: os.sched_setaffinity(0, {waiting.pop()})
    )


def start_vllm(cores: list[int]) -> tuple[dict[int, VllmAttention], str | None]:
    """vLLM's attention by number of threads, or none and why."""
    peers: dict[int, VllmAttention] = {}
    try:
        python = vllm.interpreter(report.ROOT)
        for count in {1, len(cores)}:
            log = Path(tempfile.gettempdir()) / f"vllm_attention_{count}.log"
            peers[count] = VllmAttention(python, cores[:count], log)
            peers[count].prepare(4, 2, 64, 100, 1)  # imports, and the first errors
    except (vllm.PeerError, PeerFailedError) as error:
        for peer in peers.values():
            peer.close()
        return {}, str(error)
    return peers, None


def measure_path(args: argparse.Namespace, cores: list[int]) -> dict[str, Any]:
    """Roofs and rows of the path that this process runs."""
    begin = time.perf_counter()
    os.sched_setaffinity(0, cores)
    peers, vllm_failure = start_vllm(cores) if args.peers else ({}, "not asked for")
    os.sched_setaffinity(0, {cores[0]})
    sides: Sides = {1: None}
    if len(cores) > 1:
        sides[len(cores)] = Workers(len(cores) - 1, cores=cores[1:])
    pools = {count: pinned(cores[:count]) for count in sides}
    with Roof(cores) as roof:
        one, every = ([roof.gbps(n) for _ in range(args.turns)] for n in (1, len(cores)))
        bench = Bench(roof, sides, pools, NeoLike() if args.peers else None, peers, args)
        rows: list[dict[str, Any]] = []
        skipped: list[str] = []
        for shape in short_grid() if args.quick else grid():
            if time.perf_counter() - begin > args.limit_s:
                skipped.append(str(shape))
                continue
            rows += measure(shape, bench)
            print(f"{isa_name()}: {shape}: {[round(r['gbps'], 1) for r in rows[-len(sides) :]]}")
        if bench.neo:
            bench.neo.close()
    for workers in filter(None, sides.values()):
        workers.close()
    for pool in pools.values():
        pool.shutdown()
    for peer in peers.values():
        peer.close()
    roofs = {"roof_gbps_one": statistics.median(one), "roof_gbps_all": statistics.median(every)}
    measured = vllm_failure or f"{vllm.NAME} {vllm.VERSION}"
    return roofs | {"vllm": measured, "skipped": skipped, "rows": rows}


def other_paths(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of the short grid on every other path that the machine has."""
    rows: list[dict[str, Any]] = []
    for path in PATHS:
        if path == isa_name():
            continue
        with tempfile.NamedTemporaryFile(suffix=".json") as answer:
            command = [sys.executable, __file__, "--quick", "--no-peers", "--rows", answer.name]
            command += ["--turns", str(args.turns), "--seed", str(args.seed)]
            environment = os.environ | {"OMNISERVE_ISA": path}
            done = subprocess.run(
                command, env=environment, timeout=PATH_TIMEOUT_S, capture_output=True, check=False
            )
            if done.returncode == 0:
                rows += json.loads(Path(answer.name).read_text())
            else:  # such as a path that this machine lacks
                print(f"{path}: {done.stderr.decode().strip().splitlines()[-1]}", file=sys.stderr)
    return rows


def measure_all(args: argparse.Namespace, cores: list[int]) -> dict[str, Any]:
    """Everything that kernel.json holds beside its head."""
    figures = measure_path(args, cores)
    os.sched_setaffinity(0, cores)
    figures["rows"] += other_paths(args)
    os.sched_setaffinity(0, {cores[0]})
    with Workers(1, cores=[cores[-1]], spin_ns=joins.SPIN_NS) as host:
        costs = joins.measure(host, args.iterations)
    hops = {}
    for name, spin_ns in (("spinning", 1_000_000), ("asleep", 0)):
        with Workers(1, cores=[cores[-1]], spin_ns=spin_ns) as host:
            hops[name] = joins.hop_us(host)
    figures |= {"joins": costs.json(), "hop_us": hops}
    return figures | {"targets": kernel_targets.of(figures["rows"])}


def parse() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=5, help="roof and kernel alternate this often")
    parser.add_argument("--iterations", type=int, default=100, help="iterations of the join loop")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit-s", type=int, default=420, help="a path begins no shape later")
    parser.add_argument("--quick", action="store_true", help="the short grid")
    parser.add_argument("--no-peers", dest="peers", action="store_false")
    parser.add_argument("--rows", type=Path, help="write the rows of this path there and end")
    return parser.parse_args()


def main() -> None:
    """Measures, prints, writes."""
    args = parse()
    cores = sorted(os.sched_getaffinity(0))
    if args.rows:
        args.rows.write_text(json.dumps(measure_path(args, cores)["rows"]))
        return
    figures = measure_all(args, cores)
    console = Console(width=140)
    console.print(table_of(figures["rows"]))
    console.print(
        f"read roof: {figures['roof_gbps_one']:.1f} GB/s one core, "
        f"{figures['roof_gbps_all']:.1f} GB/s all"
    )
    console.print("joins over 30 layers:", figures["joins"])
    console.print("one hop, us:", figures["hop_us"])
    console.print_json(data=figures["targets"])
    console.print("vLLM:", figures["vllm"])
    console.print("not measured for lack of time:", figures["skipped"])
    written = report.write("kernel", figures, seed=args.seed)
    kernel_plot.draw(figures, written.with_suffix(".png"))
    console.print(f"written: {written}, {written.with_suffix('.png').name}")


if __name__ == "__main__":
    main()
