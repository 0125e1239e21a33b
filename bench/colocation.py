"""`make bench-colocation`: LS and BE on one engine under every policy, on the same seeded traces.

First `ls_alone` is run over a range of rates: SLOs and loads follow from it (docs/benchmarks.md).
Then policies take turns, round by round; a server keeps its BE backlog over the loads of a round.
Finished cells are kept in bench/out/colocation.rounds.jsonl and skipped by the next call, until the
code that they depend on changes. Results: bench/out/colocation.json (of the emulated device; else
colocation_cpu.json, colocation_cuda.json), plots and a table.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

import report
from colocation_client import CellFigures
from colocation_code import code
from colocation_figures import Calibration, be_rate, calibrate
from colocation_report import Run, rows_and_ratios, table
from colocation_session import LS_WARM_S, Cell, Session
from colocation_setup import (
    ABLATIONS,
    DEVICES,
    POLICY_ROWS,
    Device,
    PolicyRow,
    with_model,
)
from colocation_traces import LsRequest, ls_trace
from servers import ServerError
from store import Key, Store, digest

CALL_AGAIN = 75  # exit code: sessions are left that did not fit the limit
START_S, CELL_EXTRA_S = 22.0, 5.0  # estimates, for the limit
UNLOADED_S = 40.0
CALIBRATION_S = 25.0  # per rate: shorter, and one burst decides what "heavy" is
MOST_STOLEN = 0.015  # of a cell's time on all cores; where the host took more, it is measured again
ATTEMPTS = 3  # the last one counts whatever the host took


@dataclass(frozen=True)
class Stretch:
    """A kind of cell: which load, how it arrives, how long."""

    load: str
    arrivals: str
    seconds: float
    numbers: tuple[int, ...] | None = (1,)  # of the rounds that have it; None: all

    def within(self, rounds: int) -> list[int]:
        """Which of so many rounds have it: the only one there is, or as `numbers` says."""
        wanted = [n for n in range(rounds) if self.numbers is None or n in self.numbers]
        return wanted or [0]

    @property
    def name(self) -> str:
        """As in the table."""
        return self.load if self.arrivals == "poisson" else f"{self.load} {self.arrivals}"


FULL = (
    Stretch("heavy", "poisson", 55, numbers=None),  # first: it matters most
    Stretch("medium", "poisson", 12),
    Stretch("light", "poisson", 8),
    Stretch("heavy", "bursty", 15),
)
QUICK = (Stretch("heavy", "poisson", 10),)
HEAVY = "heavy"


@dataclass(frozen=True)
class Plan:
    """What a run measures."""

    device: Device
    rows: Sequence[PolicyRow]
    ablations: Sequence[PolicyRow]
    stretches: Sequence[Stretch]
    rounds: int
    calibration_s: float
    be_alone_s: float
    seed: int
    code: str
    commit: str

    def key(self, row: PolicyRow, name: str, rate: float, seconds: float, number: int) -> Key:
        """What a cell's figures depend on."""
        device = self.device
        settings = (
            device.flags,
            device.model,
            device.sizes,
            device.be_places,
            row,
            self.be_alone_s,
        )
        overflow = (device.overflow_flags, device.overflow_places) if row.overflow else ()
        return {
            "device": device.name,
            "policy": row.name,
            "cell": name,
            "rate": round(rate, 3),
            "seconds": seconds,
            "round": number,
            "seed": self.seed,
            "settings": digest(settings, overflow),
            "code": self.code,
        }


class Limit:
    """Wall-clock time of this call."""

    def __init__(self, seconds: float | None) -> None:
        self._end_s = None if seconds is None else time.monotonic() + seconds

    def allows(self, seconds: float) -> bool:
        """Whether so much is left."""
        return self._end_s is None or time.monotonic() + seconds <= self._end_s


class Benchmark:
    """Runs what is missing of a plan."""

    def __init__(
        self, plan: Plan, store: Store[CellFigures], limit: Limit, console: Console
    ) -> None:
        self.plan, self.store, self.limit, self.console = plan, store, limit, console

    # ---- calibration -----------------------------------------------------------------------

    def calibrate(self) -> Calibration | None:
        """From measured cells; None: not all are there yet."""
        plan, alone = self.plan, POLICY_ROWS[0]
        wanted = [
            (plan.device.single_rate, plan.device.patience * UNLOADED_S),
            *((r, plan.calibration_s) for r in plan.device.rates),
        ]
        keys = {r: plan.key(alone, f"calibration {r:g}", r, s, 0) for r, s in wanted}

        def missing() -> list[Cell]:
            return [
                self._cell(keys[rate], self._trace("poisson", rate, seconds, 1000))
                for rate, seconds in wanted
                if self.store.find(keys[rate]) is None
            ]

        if not self._run(alone, missing, None, 0, [s for _, s in wanted]):
            return None
        found = {rate: self._found(key) for rate, key in keys.items()}
        unloaded = found.pop(plan.device.single_rate)
        return calibrate(unloaded, found, plan.device.tpot_factor, plan.device.objective)

    def _found(self, key: Key) -> CellFigures:
        figures = self.store.find(key)
        if figures is None:
            raise RuntimeError(f"no figures for {key}")
        return figures

    # ---- rounds ----------------------------------------------------------------------------

    def measure(self, calibration: Calibration) -> bool:
        """Every row of every round; False: some did not fit the limit."""
        plan = self.plan
        for number in range(plan.rounds):
            rows = plan.rows
            turn = number % len(rows)
            for row in (*rows[turn:], *rows[:turn]):
                stretches = [s for s in self.plan.stretches if number in s.within(plan.rounds)]
                if not self._session(row, stretches, number, calibration):
                    return False
        heavy = [s for s in self.plan.stretches if s.name == HEAVY]
        return all(self._session(row, heavy, 0, calibration) for row in self.plan.ablations)

    def _session(
        self,
        row: PolicyRow,
        stretches: Sequence[Stretch],
        number: int,
        calibration: Calibration,
    ) -> bool:
        def missing() -> list[Cell]:
            cells = []
            for stretch in stretches:
                key = self.cell_key(row, stretch, number, calibration)
                if self.store.find(key) is None:
                    rate = calibration.rates[stretch.load]
                    trace = self._trace(stretch.arrivals, rate, stretch.seconds, number)
                    cells.append(self._cell(key, trace))
            return cells

        return self._run(row, missing, calibration, number, [s.seconds for s in stretches])

    def cell_key(
        self, row: PolicyRow, stretch: Stretch, number: int, calibration: Calibration
    ) -> Key:
        """The key of one row's cell in one round."""
        rate = calibration.rates[stretch.load]
        key = self.plan.key(row, stretch.name, rate, stretch.seconds, number)
        return key | {"slo": [calibration.slo.ttft_ms, calibration.slo.tpot_ms]}

    def _trace(self, arrivals: str, rate: float, seconds: float, number: int) -> list[LsRequest]:
        seed = (self.plan.seed, number, int(1000 * rate), int(seconds), len(arrivals))
        return ls_trace(self.plan.device.sizes, arrivals, rate, seconds, seed)

    def _cell(self, key: Key, trace: Sequence[LsRequest]) -> Cell:
        def done(figures: CellFigures) -> None:
            figures.commit = self.plan.commit
            last = self.store.discarded(key) == ATTEMPTS - 1
            again = figures.stolen_share > MOST_STOLEN and not last
            (self.store.discard if again else self.store.add)(key, figures)
            self.console.print(_line(key, figures) + ("; measured again" if again else ""))

        return Cell(str(key["cell"]), trace, done)

    def _run(
        self,
        row: PolicyRow,
        missing: Callable[[], list[Cell]],
        calibration: Calibration | None,
        number: int,
        seconds: Sequence[float],
    ) -> bool:
        """Sessions until nothing is missing; False: one more did not fit the limit."""
        warm_s = self.plan.be_alone_s + LS_WARM_S if row.best_effort else LS_WARM_S
        session_s = START_S + warm_s + sum(s + CELL_EXTRA_S for s in seconds)
        while cells := missing():
            if not self.limit.allows(session_s):
                return False
            self._drive(row, cells, calibration, number)
        return True

    def _drive(
        self,
        row: PolicyRow,
        cells: Sequence[Cell],
        calibration: Calibration | None,
        number: int,
    ) -> None:
        light = calibration.rates["light"] if calibration else self.plan.device.single_rate
        Session(
            device=self.plan.device,
            row=row,
            slo=calibration.slo if calibration else None,
            seed=self.plan.seed + number,
            be_alone_s=self.plan.be_alone_s,
            warm_trace=self._trace("poisson", light, LS_WARM_S, 2000),
            cells=cells,
            log_dir=report.OUT / "logs",
        ).run()


def _line(key: Key, figures: CellFigures) -> str:
    late_ms = max((r.late_ms for r in figures.requests), default=0.0)
    cores = figures.server_cpu_s / figures.seconds
    lost_s = figures.engine.get("emulation_late_s", 0.0)
    return (
        f"{key['policy']}, {key['cell']}, round {key['round']}: {len(figures.requests)} LS in "
        f"{figures.seconds:.0f} s, BE {be_rate(figures):.1f} tokens/s; servers {cores:.2f} cores, "
        f"client {figures.client_cpu_share:.2f}, at most {late_ms:.0f} ms late"
        + (f"; the machine's host took {figures.stolen_share:.1%}" if figures.stolen_share else "")
        + (f"; the emulated device lost {1e3 * lost_s:.0f} ms" if lost_s else "")
    )


def _collect(benchmark: Benchmark, calibration: Calibration) -> Run:
    """All cells, by row and stretch, in the order of rounds."""
    plan, cells = benchmark.plan, {}

    def find(row: PolicyRow, stretch: Stretch, rounds: int) -> list[CellFigures]:
        numbers = stretch.within(rounds)
        keys = [benchmark.cell_key(row, stretch, n, calibration) for n in numbers]
        return [f for key in keys if (f := benchmark.store.find(key)) is not None]

    for stretch in plan.stretches:
        for row in plan.rows:
            cells[stretch.name, row.name] = find(row, stretch, plan.rounds)
        for row in plan.ablations if stretch.name == HEAVY else ():
            cells[stretch.name, row.name] = find(row, stretch, 1)
    return Run(plan.device, calibration, cells, plan.seed)


def result_name(device: Device) -> str:
    """Of the result file: `colocation` is the comparison with bars, on the emulated device."""
    return "colocation" if device.name == "emulated" else f"colocation_{device.name}"


def _stretches(device: Device) -> list[Stretch]:
    return [replace(s, seconds=device.patience * s.seconds) if s.name == HEAVY else s for s in FULL]


def _plan(options: argparse.Namespace) -> Plan:
    device = DEVICES[options.device]
    if options.model_dir is not None:
        device = with_model(device, options.model_dir)
    rows = [r for r in POLICY_ROWS if not options.rows or r.name in options.rows]
    ablations = [r for r in ABLATIONS if r.name in options.rows] if options.rows else ABLATIONS
    if POLICY_ROWS[0] not in rows:
        rows = [POLICY_ROWS[0], *rows]
    if options.quick:
        device = replace(device, rates=device.rates[2:7:2])
        return Plan(
            device, rows[:4], (), QUICK, 1, 6.0, 10.0, options.seed, code(), report.commit()
        )
    return Plan(
        device,
        rows,
        ablations,
        _stretches(device),
        options.rounds,
        device.patience * CALIBRATION_S,
        30.0,
        options.seed,
        code(),
        report.commit(),
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=tuple(DEVICES), default="emulated")
    parser.add_argument("--quick", action="store_true", help="a smoke run of about two minutes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", nargs="+", default=[], help="policies of the table; all if none")
    parser.add_argument("--limit-s", type=float, help=f"begin nothing longer; exit {CALL_AGAIN}")
    parser.add_argument("--model-dir", type=Path, help="instead of the device's model")
    options = parser.parse_args()
    known = [row.name for row in (*POLICY_ROWS, *ABLATIONS)]
    for name in options.rows:
        if name not in known:
            parser.error(f"--rows: {name!r} is unknown; use some of {', '.join(known)}")
    if options.device == "cuda" and options.model_dir is None:
        parser.error("--device cuda: --model-dir is missing; bench/colocation_model.py writes one")
    return options


def main() -> int:
    """Measure what is missing, then print, plot and write."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # servers are stopped on the way out
    options, console = _options(), Console(width=150)
    plan = _plan(options)
    store = Store(report.OUT / "colocation.rounds.jsonl", CellFigures)
    benchmark = Benchmark(plan, store, Limit(options.limit_s), console)
    try:
        calibration = benchmark.calibrate()
        complete = calibration is not None and benchmark.measure(calibration)
    except (ServerError, ValueError) as error:
        console.print(f"bench-colocation: {error}", style="red")
        return 1
    if calibration is None:
        return CALL_AGAIN
    run = _collect(benchmark, calibration)
    contents = rows_and_ratios(run)
    console.print(*table(run, contents))
    console.print(f"written: {report.write(result_name(plan.device), contents, seed=plan.seed)}")
    _plot(contents, console)
    return 0 if complete else CALL_AGAIN


def _plot(contents: dict[str, Any], console: Console) -> None:
    try:
        from colocation_plots import draw
    except ImportError as error:  # a bare GPU machine has no matplotlib
        console.print(f"no plots: {error}")
        return
    for path in draw(contents, report.OUT):
        console.print(f"plot: {path}")


if __name__ == "__main__":
    sys.exit(main())
