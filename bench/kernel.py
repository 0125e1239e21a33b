"""`make bench-kernel`: decode attention's GB/s, each KV byte counted once, against two roofs.

The read roof (roof.c: the fastest of several ways to read memory), the roof of multiply-adds
(multiply.c: what arithmetic allows), the kernel and its peers (vLLM's CPU attention, torch, a
NEO-like reference) take turns on the same cores; a ratio is the median over the turns, and a row's
bound the lower of what the two roofs allow. The grid is a sample in an order of which any beginning
is one too (kernel_shapes.py), in about four minutes on two cores. Every ISA path that this machine
has takes its turns at the short grid, from a process of its own (kernel_paths.py).
Results: bench/out/kernel.json, kernel.png and tables. --quick measures the short grid alone.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console

import hops
import joins
import kernel_plot
import kernel_tables
import kernel_targets
import report
from asked import PeerFailedError
from kernel_paths import sides_of, start_others
from kernel_peers import Memory, NeoLike, VllmAttention
from kernel_shapes import Shape, grid, short_grid
from kernel_turns import Bench, Row, measure
from multiply import Arithmetic
from omniserve_native import Workers, isa_name
from peers import vllm
from roof import Roof
from together import Team


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
        peer.prepare(Shape(4, 64, 2, context=100, most_rows=1))  # imports, and the first errors
    except (vllm.PeerError, PeerFailedError) as error:
        if peer:
            peer.close()
        return None, str(error)
    return peer, None


def measure_grid(args: argparse.Namespace, cores: list[int]) -> dict[str, Any]:
    """Roofs and rows."""
    peer, vllm_failure = start_vllm(cores) if args.peers else (None, "not asked for")
    os.sched_setaffinity(0, {cores[0]})
    with contextlib.ExitStack() as closing:
        if peer:
            closing.callback(peer.close)
        bench = make_bench(args, cores, peer, closing)
        roofs = survey(bench)
        rows, skipped = measure_shapes(short_grid() if args.quick else grid(), bench, args.limit_s)
    measured = vllm_failure or f"{vllm.NAME} {vllm.VERSION}"
    return roofs | {"vllm": measured, "skipped": skipped, "rows": rows}


def measure_shapes(
    shapes: list[Shape], bench: Bench, limit_s: float
) -> tuple[list[Row], list[str]]:
    """Rows, and what there was no time for."""
    begin, rows, skipped = time.perf_counter(), list[Row](), list[str]()
    for shape in shapes:
        if time.perf_counter() - begin > limit_s:
            skipped.append(str(shape))
            continue
        found = measure(shape, bench)
        rows += found
        speeds = [round(row["gbps"], 1) for row in found if row["isa"] == isa_name()]
        print(f"{time.perf_counter() - begin:.0f} s: {shape}: {speeds}")
    return rows, skipped


def make_bench(
    args: argparse.Namespace,
    cores: list[int],
    peer: VllmAttention | None,
    closing: contextlib.ExitStack,
) -> Bench:
    """All that `closing` ends."""
    sides = sides_of(cores, closing)
    pools = {count: closing.enter_context(pinned(cores[:count])) for count in sides}
    team = closing.enter_context(Team(cores))
    neo = NeoLike() if args.peers else None
    if neo:
        closing.callback(neo.close)
    others = start_others(cores, args.seed, closing)
    roofs = Roof(team), Arithmetic(team, isa_name())
    return Bench(*roofs, sides, pools, neo, Memory(), peer, others, args.turns, args.seed)


def survey(bench: Bench) -> dict[str, Any]:
    """The roofs before the first shape, and every way to read memory."""
    most = max(bench.sides)
    read = {n: bench.roof.survey(n) for n in bench.sides}
    floats = {n: max(bench.arithmetic.gmacs(n) for _ in range(bench.turns)) for n in bench.sides}
    return {
        "roof_gbps_one": read[1],
        "roof_gbps_all": read[most],
        "fma_gmacs_one": floats[1],
        "fma_gmacs_all": floats[most],
        "roof_ways": bench.roof.json(),
    }


def measure_all(args: argparse.Namespace, cores: list[int]) -> dict[str, Any]:
    """Everything that kernel.json holds beside its head."""
    figures = measure_grid(args, cores)
    with Workers(1, cores=[cores[-1]], spin_ns=joins.SPIN_NS) as host:
        costs = joins.measure(host, args.iterations)
    figures |= {"joins": costs.json(), "hops": hops.measure(cores[-1])}
    os.sched_setaffinity(0, cores)
    return figures | {"targets": kernel_targets.of(figures)}


def parse() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=3, help="roof and kernel alternate this often")
    parser.add_argument("--iterations", type=int, default=100, help="iterations of the join loop")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit-s", type=int, default=240, help="the last shape begins")
    parser.add_argument("--quick", action="store_true", help="the short grid")
    parser.add_argument("--no-peers", dest="peers", action="store_false")
    return parser.parse_args()


def show(figures: dict[str, Any], console: Console) -> None:
    """Tables."""
    console.print(kernel_tables.rows_table(figures["rows"]))
    for name, unit in (("roof", "gbps"), ("fma", "gmacs")):
        one, every = (figures[f"{name}_{unit}_{count}"] for count in ("one", "all"))
        console.print(f"{name}: one core {one:.1f}, all {every:.1f} {unit}")
    console.print("joins over 30 layers:", figures["joins"])
    console.print("hops, us:", figures["hops"])
    console.print(kernel_tables.targets_table(figures["targets"]))
    console.print("vLLM:", figures["vllm"])
    console.print(f"not measured for lack of time: {len(figures['skipped'])} shapes")


def main() -> None:
    """Measures, prints, writes."""
    args, console = parse(), Console(width=170)
    figures = measure_all(args, sorted(os.sched_getaffinity(0)))
    show(figures, console)
    written = report.write("kernel", figures, seed=args.seed)
    kernel_plot.draw(figures, written.with_suffix(".png"))
    console.print(f"written: {written}, {written.with_suffix('.png').name}")


if __name__ == "__main__":
    main()
