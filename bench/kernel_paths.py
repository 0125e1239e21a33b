"""The kernel on another ISA path than this process runs: a process for each that the machine has,
asked in turn with this one.

The path is chosen once per process (OMNISERVE_ISA). A process is asked over stdin (asked.py): a
shape, then its GB/s or G multiply-adds/s at a number of threads as often as wanted, its error last.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from asked import Answer, Asked, PeerFailedError, serve
from kernel_problem import Problem, Sides
from kernel_shapes import Lengths, Shape
from multiply import Arithmetic
from omniserve_native import DType, Workers, isa_name
from together import Team

PATHS = ("avx512_bf16", "avx512_vnni", "avx512", "avx2", "portable")


class OtherPath:
    """This side. `unit`: by which the path multiplies the prepared shape's KV."""

    def __init__(self, isa: str, cores: list[int], seed: int) -> None:
        self.isa, self.unit = isa, "floats"
        log = Path(tempfile.gettempdir()) / f"kernel_{isa}.log"
        command = [sys.executable, __file__]
        self._process = Asked(isa, command, cores, {"OMNISERVE_ISA": isa}, log)
        self._seed = seed

    def prepare(self, shape: Shape) -> None:
        """Fills it. Raises PeerFailedError, as where the machine lacks the path."""
        answer = self._process.ask({"shape": asdict(shape), "seed": self._seed})
        self.unit = str(answer["unit"])

    def gbps(self, threads: int) -> float:
        """Of the shape."""
        return float(self._process.ask({"threads": threads})["gbps"])

    def gmacs(self, threads: int, unit: str) -> float:
        """On registers alone."""
        return float(self._process.ask({"threads": threads, "multiply": unit})["gmacs"])

    def max_error(self) -> float:
        """Of the last call."""
        return float(self._process.ask({"error of": self.isa})["max_error"])

    def close(self) -> None:
        """Ends the process."""
        self._process.close()


def start_others(cores: list[int], seed: int, closing: contextlib.ExitStack) -> list[OtherPath]:
    """Every path that the machine has beside this process's."""
    found = []
    for isa in PATHS:
        if isa == isa_name():
            continue
        path = OtherPath(isa, cores, seed)
        closing.callback(path.close)
        try:
            path.prepare(Shape(1, 64, 1, context=64, most_rows=1))
        except PeerFailedError as error:
            print(error, file=sys.stderr)
            continue
        found.append(path)
    return found


def sides_of(cores: list[int], closing: contextlib.ExitStack) -> Sides:
    """The caller alone, and with a worker on every other core."""
    sides: Sides = {1: None}
    if len(cores) > 1:
        sides[len(cores)] = closing.enter_context(Workers(len(cores) - 1, cores=cores[1:]))
    return sides


class Answering:
    """The other side."""

    def __init__(self, cores: list[int], closing: contextlib.ExitStack) -> None:
        self._sides = sides_of(cores, closing)
        self._arithmetic = Arithmetic(closing.enter_context(Team(cores)), isa_name())
        self._problem: Problem | None = None

    def answer(self, asked: Answer) -> Answer:
        """Of one line."""
        if "shape" in asked:
            return {"unit": self._fill(asked["shape"], asked["seed"])}
        if "multiply" in asked:
            return {"gmacs": self._arithmetic.gmacs(asked["threads"], asked["multiply"])}
        if self._problem is None:
            raise ValueError("there is no shape; send one first")
        if "threads" in asked:
            return {"gbps": self._problem.gbps(asked["threads"])}
        return {"max_error": self._problem.max_error()}

    def _fill(self, fields: Answer, seed: int) -> str:
        """The unit by which the path multiplies its KV."""
        if self._problem:
            self._problem.arena.close()
        dtype, lengths = DType(fields["dtype"]), Lengths(fields["lengths"])
        self._problem = Problem(
            Shape(**fields | {"dtype": dtype, "lengths": lengths}), self._sides, seed
        )
        return self._arithmetic.unit(dtype.name.lower())


def main() -> None:
    """Serves; the calling thread on the first core."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[0]})
    with contextlib.ExitStack() as closing:
        serve(Answering(cores, closing).answer)


if __name__ == "__main__":
    main()
