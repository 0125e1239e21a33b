"""The CPU device's dense modules beside torch's products and two roofs: milliseconds of one pass.

A pass is every layer's modules and the head, over some rows. In turn: the engine's native modules
without attention (`Modules`), their matrix products alone (`Products`) by the native library, by
torch in bfloat16 (oneDNN's packed weights where the CPU multiplies bfloat16) and by torch in
float32; each library's weights lie as it puts them. Beside them the time in which the read roof
(roof.c) brings the bfloat16 weights, and the one in which the path's multiply-adds are done
(multiply.c); the bound is the longer of the two. Rows and outputs are not counted. One thread and
all; ratios are the median and the range of turns. `bench/out/dense.json`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import kernel_bounds
import report
from dense_passes import (
    BF16,
    MODELS,
    Modules,
    Products,
    Weights,
    by_torch,
    by_torch_in_float32,
    weight_count,
)
from kernel_bounds import ROOF, Turn
from multiply import Arithmetic
from omniserve_agent.engine.build import HELPER_SPIN_NS
from omniserve_agent.engine.model.linear import PackedLinear
from omniserve_agent.engine.model.native_layers import NativeLayers
from omniserve_native import Workers, dense_supported, isa_name
from roof import Roof
from spread import spread
from together import Team, on_cores

LEAST_TURNS, MOST_TURNS = 3, 15
# After their work OpenMP's threads spin for some milliseconds, on the other sides' cores.
SETTLE_S = 0.01
GMACS = "multiply-adds"
SIDES = ("engine", "native", "torch", "float32")
Run = Callable[[int], None]
Row = dict[str, Any]


@dataclass(frozen=True)
class Side:
    """One kind of pass, and the cores that the calling thread may use."""

    run: Run
    cores: list[int]

    def seconds(self, rows: int) -> float:
        """Of one pass."""
        with on_cores(self.cores):
            begin = time.perf_counter()
            self.run(rows)
            return time.perf_counter() - begin


class Bench:
    """Weights, torch's passes and the roofs: what one thread and all have in common."""

    def __init__(self, team: Team, options: argparse.Namespace) -> None:
        self.options, self.cores = options, team.cores
        self.roof, self.arithmetic = Roof(team), Arithmetic(team, isa_name())
        self.weights = weights = Weights(MODELS[options.model], options.seed)
        most = max(options.rows)
        self.torch: dict[str, Run] = {
            "torch": Products(weights, most, by_torch, BF16).run,
            "float32": Products(weights, most, by_torch_in_float32, torch.float32).run,
        }

    def measure(self, threads: int) -> list[Row]:
        """A line for each number of rows."""
        torch.set_num_threads(threads)
        self.roof.survey(threads)
        with contextlib.ExitStack() as closing:
            sides = self._sides(threads, closing)
            return [self._line(threads, rows, sides) for rows in self.options.rows]

    def _sides(self, threads: int, closing: contextlib.ExitStack) -> dict[str, Side]:
        """As SIDES has them; the native ones with helpers as the engine's."""
        helpers, config = None, self.weights.config
        if threads > 1:
            others = self.cores[1:threads]
            workers = Workers(len(others), cores=others, spin_ns=HELPER_SPIN_NS)
            helpers = closing.enter_context(workers)
        native, most = NativeLayers(config, helpers), max(self.options.rows)
        runs: dict[str, Run] = {
            "engine": Modules(self.weights, most, native).run,
            "native": Products(self.weights, most, native.linear, BF16).run,
        }
        sides = {name: Side(run, self.cores[:1]) for name, run in runs.items()}
        return sides | {name: Side(run, self.cores[:threads]) for name, run in self.torch.items()}

    def _line(self, threads: int, rows: int, sides: dict[str, Side]) -> Row:
        """Its first turn warms up and tells how many there is time for."""
        begin = time.perf_counter()
        self._turn(threads, rows, sides)
        count = turns_within(self.options.line_s, time.perf_counter() - begin)
        turns = [self._turn(threads, rows, sides) for _ in range(count)]
        return row_of(threads, rows, weight_count(self.weights.config), turns)

    def _turn(self, threads: int, rows: int, sides: dict[str, Side]) -> Turn:
        """GB/s of the fastest ways to read, G multiply-adds/s, seconds of each side."""
        until = time.perf_counter() + SETTLE_S
        while time.perf_counter() < until:
            pass
        ways = self.roof.fastest(threads)
        found = {f"{ROOF}{way}": self.roof.gbps(threads, way) for way in ways}
        found[GMACS] = self.arithmetic.gmacs(threads, self.arithmetic.unit("bf16"))
        return found | {name: side.seconds(rows) for name, side in sides.items()}


def turns_within(seconds: float, turn_s: float) -> int:
    """As many as fit, but neither too few for a range nor more than say anything new."""
    return min(MOST_TURNS, max(LEAST_TURNS, int(seconds / turn_s)))


def row_of(threads: int, rows: int, weights: int, turns: list[Turn]) -> Row:
    """A line of the result file. Of the ways to read the fastest and of multiply-adds the best turn
    count, as in kernel.json."""
    way = kernel_bounds.fastest(turns)
    reading = [2 * weights / turn[way] / 1e6 for turn in turns]  # ms
    multiplying = weights * rows / max(turn[GMACS] for turn in turns) / 1e6
    bound = [max(read, multiplying) for read in reading]
    took = {name: [1e3 * turn[name] for turn in turns] for name in SIDES}
    row: Row = {"threads": threads, "rows": rows, "turns": len(turns)}
    row |= {"roof_way": way.removeprefix(ROOF), "multiply_ms": round(multiplying, 3)}
    row |= spread("roof_ms", reading) | spread("bound_ms", bound)
    for name in SIDES:
        row |= spread(f"{name}_ms", took[name])
    for name in ("engine", "native"):
        row |= spread(f"{name}_over_bound", over(took[name], bound))
    for name in ("torch", "float32"):
        row |= spread(f"{name}_over_native", over(took[name], took["native"]))
    return row


def over(values: list[float], others: list[float]) -> list[float]:
    """The turns' quotients."""
    return [value / other for value, other in zip(values, others, strict=True)]


def table_of(rows: list[Row], title: str) -> Table:
    """A line for each number of threads and rows."""
    table = Table(title=title)
    times = ("roof", "multiply", *SIDES)
    ratios = ("engine_over_bound", "native_over_bound", "torch_over_native", "float32_over_native")
    for name in ("threads", "rows", *times, *ratios):
        table.add_column(name.replace("_over_", " / "), justify="right")
    for row in rows:
        spreads = [(row[name], *row[f"{name}_range"]) for name in ratios]
        table.add_row(
            *(str(row[name]) for name in ("threads", "rows")),
            *(f"{row[f'{name}_ms']:.1f}" for name in times),
            *(f"{middle:.2f} ({least:.2f} to {most:.2f})" for middle, least, most in spreads),
        )
    return table


def parse() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=MODELS, default="smollm2-135m")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--line-s", type=float, default=2.0, help="of turns a line, if they fit")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="1, 4 and 16 rows, half a second each")
    options = parser.parse_args()
    if options.quick:
        options.rows, options.line_s = [1, 4, 16], 0.5
    if not dense_supported():
        parser.error(f"path {isa_name()} has no dense modules; they need AVX2 or AVX-512")
    return options


@torch.inference_mode()
def main() -> None:
    """One thread, then all."""
    options, cores = parse(), sorted(os.sched_getaffinity(0))
    with Team(cores) as team:
        bench = Bench(team, options)
        rows = [row for threads in sorted({1, len(cores)}) for row in bench.measure(threads)]
    count = weight_count(MODELS[options.model])
    packed = isinstance(by_torch(bench.weights.layers[0].o), PackedLinear)
    about = {"model": options.model, "isa": isa_name(), "weight_bytes": 2 * count}
    about |= {"torch_is_packed": packed, "roof_ways": bench.roof.json()}
    Console(width=170).print(table_of(rows, f"{options.model}, ms a pass"))
    written = report.write("dense", about | {"rows": rows}, seed=options.seed)
    Console().print(f"written: {written}")


if __name__ == "__main__":
    main()
