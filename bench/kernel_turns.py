"""One shape of `make bench-kernel`: kernel, roofs, peers and other ISA paths take turns; rows of
kernel.json come of it."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import kernel_bounds
import kernel_tables
from asked import PeerFailedError
from kernel_paths import OtherPath
from kernel_peers import Memory, NeoLike, NeoProblem, TorchProblem, VllmAttention
from kernel_problem import Problem, Sides
from kernel_shapes import Lengths, Shape, short_grid
from multiply import Arithmetic
from omniserve_native import isa_name
from roof import Roof, Way

Call = Callable[[], float]
Calls = dict[str, Call]
Row = dict[str, Any]
Turn = kernel_bounds.Turn

PEER_S = 0.06  # of a peer's call; of slow ones it has fewer rows


@dataclass(frozen=True)
class Bench:
    """What every shape is measured with; by number of threads where that matters."""

    roof: Roof
    arithmetic: Arithmetic
    sides: Sides
    pools: dict[int, ThreadPoolExecutor]  # pinned
    neo: NeoLike | None  # with the other peers, or without any
    gathered: Memory  # torch's
    vllm: VllmAttention | None
    others: list[OtherPath]
    turns: int
    seed: int

    def peers(self, shape: Shape) -> Callable[[int], Calls]:
        """The peers' calls at a number of threads, each GB/s; of what they can do."""
        if self.neo is None or not shape.comparable:
            return lambda _: {}
        sdpa, packed = TorchProblem(self.gathered, shape), self._vllm_with(shape)
        neo = NeoProblem(self.neo, shape) if shape.q_len == 1 else None

        def at(threads: int) -> Calls:
            calls: dict[str, Callable[[int], float]] = {
                "torch": lambda rows: sdpa.gbps(self.roof.cores[:threads], rows)
            }
            if neo is not None:
                calls["neo_like"] = lambda rows: neo.gbps(self.pools[threads], rows)
            if packed is not None:
                calls["vllm"] = lambda rows: packed.gbps(threads, rows)
            return {name: in_time(call, shape, threads) for name, call in calls.items()}

        return at

    def _vllm_with(self, shape: Shape) -> VllmAttention | None:
        """vLLM, filled, or None where it cannot do the shape; the row's ratio is then null."""
        if self.vllm is None:
            return None
        try:
            self.vllm.prepare(shape)
        except PeerFailedError as error:
            print(f"{shape}: {error}", file=sys.stderr)
            return None
        return self.vllm

    def roofs(self, threads: int, unit: str) -> Calls:
        """Memory's, read in the ways that were fastest, and arithmetic's."""

        def read(way: Way) -> Call:
            return lambda: self.roof.gbps(threads, way)

        ways = {f"{kernel_bounds.ROOF}{way}": read(way) for way in self.roof.fastest(threads)}
        floats = {"floats": lambda: self.arithmetic.gmacs(threads)}
        return ways | floats | {unit: lambda: self.arithmetic.gmacs(threads, unit)}


def in_time(call: Callable[[int], float], shape: Shape, threads: int) -> Call:
    """Over as many rows as take about PEER_S, by the better of two calls over one row a thread.
    Only what is far below the read roof gets less than all; if that stays in a cache, it is to its
    favour. Rows of different lengths belong together."""
    if shape.lengths is not Lengths.ALIKE:
        return lambda: call(shape.rows)
    fewest = shape.rows if shape.calls > 1 else min(threads, shape.rows)
    fitting = PEER_S * max(call(fewest), call(fewest)) * 1e9 / shape.bytes_of_first(1)
    rows = min(len(shape.contexts), max(1, round(fitting / fewest)) * fewest)
    return lambda: call(rows)


def measure(shape: Shape, bench: Bench) -> list[Row]:
    """A row of the result file for each number of threads and path; this process's path first."""
    problem = Problem(shape, bench.sides, bench.seed)
    twin = Problem(shape.twin, bench.sides, bench.seed) if shape.twin else None
    others = bench.others if shape in short_grid() else []
    for other in others:
        other.prepare(shape)
    peers, rows = bench.peers(shape), list[Row]()
    for threads in bench.sides:
        rows += measure_at(threads, problem, twin, others, bench, peers(threads))
    for filled in (problem, twin):
        if filled:
            filled.arena.close()
    return rows


def measure_at(
    threads: int,
    problem: Problem,
    twin: Problem | None,
    others: list[OtherPath],
    bench: Bench,
    peers: Calls,
) -> list[Row]:
    """A row for each path."""
    unit = bench.arithmetic.unit(problem.shape.dtype.name.lower())
    calls = bench.roofs(threads, unit) | {"own": lambda: problem.gbps(threads)} | peers
    if twin:
        calls["twin"] = lambda: twin.gbps(threads)
    for other in others:
        calls |= calls_of(other, threads)
    turns = take_turns(calls, bench.turns)
    path = {"isa": isa_name(), "max_error": problem.max_error()}
    rows = [path | row_of(problem.shape, threads, turns, unit)]
    for other in others:
        path = {"isa": other.isa, "max_error": other.max_error()}
        rows.append(path | row_of(problem.shape, threads, seen_by(other, turns), other.unit))
    return rows


def calls_of(other: OtherPath, threads: int) -> Calls:
    """Of another path, by its name and what it is a path's own name for."""

    def multiply(unit: str) -> Call:
        return lambda: other.gmacs(threads, unit)

    calls: Calls = {"own": lambda: other.gbps(threads)}
    calls |= {unit: multiply(unit) for unit in ("floats", other.unit)}
    return {f"{other.isa} {name}": call for name, call in calls.items()}


def seen_by(other: OtherPath, turns: list[Turn]) -> list[Turn]:
    """The turns with what is the other path's in place of this one's, without this one's twin."""
    name = f"{other.isa} "
    return [
        {key: value for key, value in turn.items() if key != "twin"}
        | {key.removeprefix(name): value for key, value in turn.items() if key.startswith(name)}
        for turn in turns
    ]


def row_of(shape: Shape, threads: int, turns: list[Turn], unit: str) -> Row:
    """One row but for its path and error."""
    speeds = [turn["own"] for turn in turns]
    names = "group", "q_len", "head_size", "kv_heads", "context", "rows", "calls"
    return {
        **{name: getattr(shape, name) for name in names},
        "lengths": shape.lengths.value,
        "dtype": shape.dtype.name.lower(),
        "threads": threads,
        "gbps": statistics.median(speeds),
        "gbps_range": [min(speeds), max(speeds)],
        "mtokens_per_s": statistics.median(speeds) * 1e3 / (shape.bytes_of(0) / shape.q_len),
        **kernel_bounds.of(turns, shape.macs_per_byte, unit),
        **{f"ratio_{peer}": ratio(turns, peer) for peer in kernel_tables.PEERS},
        "rows_over_twin": rows_over_twin(shape, turns),
    }


def take_turns(sides: Calls, turns: int) -> list[Turn]:
    """What each side gave in each turn, after one to warm up."""
    return [{name: side() for name, side in sides.items()} for _ in range(turns + 1)][1:]


def ratio(turns: list[Turn], other: str) -> float | None:
    """Median over the turns of ours over the other's GB/s; None where it did not run."""
    if other not in turns[0]:
        return None
    return statistics.median(turn["own"] / turn[other] for turn in turns)


def rows_over_twin(shape: Shape, turns: list[Turn]) -> float | None:
    """Rows per second, that is hops, over the twin's."""
    speed = ratio(turns, "twin")
    if shape.twin is None or speed is None:
        return None
    return speed * shape.twin.bytes_of_first(1) / shape.bytes_of_first(1)
