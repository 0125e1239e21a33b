"""`make bench-kernel`: decode attention's GB/s, each KV byte counted once, against two roofs.

The read roof (roof.c: the fastest of several ways to read memory), the roof of multiply-adds
(multiply.c: what arithmetic allows), the kernel and its peers (vLLM's CPU attention, torch, a
NEO-like reference) take turns on the same cores; a ratio is the median over the turns, and a row's
bound the lower of what the two roofs allow. The grid is a sample in an order of which any beginning
is one too (kernel_shapes.py), in less than ten minutes on two cores. Every ISA path that this
machine has runs in a process of its own. Results: bench/out/kernel.json, kernel.png and tables.
--quick measures the short grid.
"""

from __future__ import annotations

import argparse
import contextlib
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

from rich.console import Console

import joins
import kernel_bounds
import kernel_plot
import kernel_tables
import kernel_targets
import report
from kernel_peers import Memory, NeoLike, NeoProblem, PeerFailedError, TorchProblem, VllmAttention
from kernel_problem import Problem, Sides
from kernel_shapes import Shape, grid, short_grid
from multiply import Arithmetic
from omniserve_native import Workers, isa_name
from peers import vllm
from roof import Roof, Way
from together import Team

Call = Callable[[], float]

PATHS = ("avx512_bf16", "avx512_vnni", "avx512", "avx2", "portable")
PATH_TIMEOUT_S = 1200
PEER_S = 0.06  # of a peer's call; of slow ones it has fewer rows


@dataclass(frozen=True)
class Bench:
    """What every shape of one process is measured with; by number of threads where that matters."""

    roof: Roof
    arithmetic: Arithmetic
    sides: Sides
    pools: dict[int, ThreadPoolExecutor]  # pinned
    neo: NeoLike | None  # with the other peers, or without any
    gathered: Memory  # torch's
    vllm: VllmAttention | None
    args: argparse.Namespace

    def peers(self, shape: Shape) -> Callable[[int], dict[str, Call]]:
        """The peers' calls at a number of threads, each GB/s; of what they can do."""
        if self.neo is None or not shape.comparable:
            return lambda _: {}
        size = (shape.group, shape.kv_heads, shape.head_size, shape.context + 1, shape.rows)
        neo, sdpa = NeoProblem(self.neo, *size), TorchProblem(self.gathered, *size)
        packed = self._vllm_with(shape, size)

        def at(threads: int) -> dict[str, Call]:
            calls: dict[str, Callable[[int], float]] = {
                "neo_like": lambda rows: neo.gbps(self.pools[threads], rows),
                "torch": lambda rows: sdpa.gbps(self.roof.cores[:threads], rows),
            }
            if packed is not None:
                calls["vllm"] = lambda rows: packed.gbps(threads, rows)
            return {name: in_time(call, shape, threads) for name, call in calls.items()}

        return at

    def _vllm_with(self, shape: Shape, size: tuple[int, ...]) -> VllmAttention | None:
        """vLLM, filled, or None where it cannot do the shape; the row's ratio is then null."""
        if self.vllm is None:
            return None
        try:
            self.vllm.prepare(*size)
        except PeerFailedError as error:
            print(f"{shape}: {error}", file=sys.stderr)
            return None
        return self.vllm

    def roofs(self, threads: int, unit: str) -> dict[str, Call]:
        """Memory's, read in the ways that were fastest, and arithmetic's."""

        def read(way: Way) -> Call:
            return lambda: self.roof.gbps(threads, way)

        ways = {f"{kernel_bounds.ROOF}{way}": read(way) for way in self.roof.fastest(threads)}
        floats = {"floats": lambda: self.arithmetic.gmacs(threads)}
        return ways | floats | {unit: lambda: self.arithmetic.gmacs(threads, unit)}


def in_time(call: Callable[[int], float], shape: Shape, threads: int) -> Call:
    """Over as many rows as take about PEER_S, by the better of two calls over one row a thread.
    Only what is far below the read roof gets less than all; if that stays in a cache, it is to its
    favour."""
    fewest = min(threads, shape.rows)
    fitting = PEER_S * max(call(fewest), call(fewest)) * 1e9 / shape.bytes_per_row
    rows = min(shape.rows, max(1, round(fitting / fewest)) * fewest)
    return lambda: call(rows)


def measure(shape: Shape, bench: Bench) -> list[dict[str, Any]]:
    """A row of the result file for each number of threads."""
    problem = Problem(shape, bench.sides, bench.args.seed)
    peers = bench.peers(shape)
    rows = [measure_at(threads, problem, bench, peers(threads)) for threads in bench.sides]
    problem.arena.close()
    return rows


def measure_at(
    threads: int, problem: Problem, bench: Bench, peers: dict[str, Call]
) -> dict[str, Any]:
    """One row."""
    shape = problem.shape
    dtype = shape.dtype.name.lower()
    unit = bench.arithmetic.unit(dtype)
    own: dict[str, Call] = {"own": lambda: problem.gbps(threads)}
    turns = take_turns(bench.roofs(threads, unit) | own | peers, bench.args.turns)
    speeds = [turn["own"] for turn in turns]
    return {
        "isa": isa_name(),
        "group": shape.group,
        "q_len": shape.q_len,
        "head_size": shape.head_size,
        "kv_heads": shape.kv_heads,
        "context": shape.context,
        "rows": shape.rows,
        "dtype": dtype,
        "threads": threads,
        "mixed": shape.mixed,
        "gbps": statistics.median(speeds),
        "gbps_range": [min(speeds), max(speeds)],
        "mtokens_per_s": statistics.median(speeds) * 1e3 / (shape.bytes_of(0) / shape.q_len),
        **kernel_bounds.of(turns, shape.macs_per_byte, unit),
        **{f"ratio_{peer}": ratio(turns, peer) for peer in kernel_tables.PEERS},
        "max_error": problem.max_error(),
    }


def take_turns(sides: dict[str, Call], turns: int) -> list[dict[str, float]]:
    """What each side gave in each turn, after one to warm up."""
    return [{name: side() for name, side in sides.items()} for _ in range(turns + 1)][1:]


def ratio(turns: list[dict[str, float]], peer: str) -> float | None:
    """Median over the turns of ours over the peer's; None where it did not run."""
    if peer not in turns[0]:
        return None
    return statistics.median(turn["own"] / turn[peer] for turn in turns)


def pinned(cores: list[int]) -> ThreadPoolExecutor:
    """A pool with one thread on each core."""
    waiting = list(cores)
    return ThreadPoolExecutor(
        len(cores), initializer=lambda: os.sched_setaffinity(0, {waiting.pop()})
    )


def start_vllm(cores: list[int]) -> tuple[VllmAttention | None, str | None]:
    """vLLM's attention, or none and why."""
    peer = None
    try:
        python = vllm.interpreter(report.ROOT)
        peer = VllmAttention(python, cores, Path(tempfile.gettempdir()) / "vllm_attention.log")
        peer.prepare(4, 2, 64, 100, 1)  # imports, and the first errors
    except (vllm.PeerError, PeerFailedError) as error:
        if peer:
            peer.close()
        return None, str(error)
    return peer, None


def measure_path(args: argparse.Namespace, cores: list[int]) -> dict[str, Any]:
    """Roofs and rows of the path that this process runs."""
    os.sched_setaffinity(0, cores)
    peer, vllm_failure = start_vllm(cores) if args.peers else (None, "not asked for")
    os.sched_setaffinity(0, {cores[0]})
    with contextlib.ExitStack() as closing:
        if peer:
            closing.callback(peer.close)
        bench = make_bench(args, cores, peer, closing)
        begin, roofs = time.perf_counter(), survey(bench)
        rows: list[dict[str, Any]] = []
        skipped: list[str] = []
        for shape in short_grid() if args.quick else grid():
            if time.perf_counter() - begin > args.limit_s:
                skipped.append(str(shape))
                continue
            rows += measure(shape, bench)
            speeds = [round(row["gbps"], 1) for row in rows[-len(bench.sides) :]]
            print(f"{time.perf_counter() - begin:.0f} s, {isa_name()}: {shape}: {speeds}")
    measured = vllm_failure or f"{vllm.NAME} {vllm.VERSION}"
    return roofs | {"vllm": measured, "skipped": skipped, "rows": rows}


def make_bench(
    args: argparse.Namespace,
    cores: list[int],
    peer: VllmAttention | None,
    closing: contextlib.ExitStack,
) -> Bench:
    """All that `closing` ends."""
    sides: Sides = {1: None}
    if len(cores) > 1:
        sides[len(cores)] = closing.enter_context(Workers(len(cores) - 1, cores=cores[1:]))
    pools = {count: closing.enter_context(pinned(cores[:count])) for count in sides}
    team = closing.enter_context(Team(cores))
    neo = NeoLike() if args.peers else None
    if neo:
        closing.callback(neo.close)
    arithmetic = Arithmetic(team, isa_name())
    return Bench(Roof(team), arithmetic, sides, pools, neo, Memory(), peer, args)


def survey(bench: Bench) -> dict[str, Any]:
    """The roofs before the first shape, and every way to read memory."""
    most = max(bench.sides)
    read = {n: bench.roof.survey(n) for n in bench.sides}
    floats = {
        n: max(bench.arithmetic.gmacs(n) for _ in range(bench.args.turns)) for n in bench.sides
    }
    return {
        "roof_gbps_one": read[1],
        "roof_gbps_all": read[most],
        "fma_gmacs_one": floats[1],
        "fma_gmacs_all": floats[most],
        "roof_ways": bench.roof.json(),
    }


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
    return figures | {"targets": kernel_targets.of(figures)}


def parse() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=5, help="roof and kernel alternate this often")
    parser.add_argument("--iterations", type=int, default=100, help="iterations of the join loop")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit-s", type=int, default=420, help="a path's last shape begins")
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
    console = Console(width=160)
    console.print(kernel_tables.rows_table(figures["rows"]))
    for name, unit in (("roof", "gbps"), ("fma", "gmacs")):
        one, every = (figures[f"{name}_{unit}_{count}"] for count in ("one", "all"))
        console.print(f"{name}: one core {one:.1f}, all {every:.1f} {unit}")
    console.print("joins over 30 layers:", figures["joins"])
    console.print("one hop, us:", figures["hop_us"])
    console.print(kernel_tables.targets_table(figures["targets"]))
    console.print("vLLM:", figures["vllm"])
    console.print(f"not measured for lack of time: {len(figures['skipped'])} shapes")
    written = report.write("kernel", figures, seed=args.seed)
    kernel_plot.draw(figures, written.with_suffix(".png"))
    console.print(f"written: {written}, {written.with_suffix('.png').name}")


if __name__ == "__main__":
    main()
