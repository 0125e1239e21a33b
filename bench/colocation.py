"""`make bench-colocation`: LS and BE on one engine under every policy, on the same seeded traces.

First `ls_alone` is run over a range of rates: SLOs and loads follow from it (design.md, section 9).
Then policies take turns, round by round; a server keeps its BE backlog over the loads of a round.
Finished cells are kept in bench/out/colocation.rounds.jsonl and skipped by the next call. Results:
bench/out/colocation.json, plots and a table.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

import report
from colocation_client import CellFigures
from colocation_figures import Calibration, calibrate
from colocation_plots import draw
from colocation_report import Run, rows_and_ratios, table
from colocation_session import Cell, Session
from colocation_setup import ABLATIONS, DEVICES, POLICY_ROWS, Device, PolicyRow
from colocation_store import Key, Store, digest
from colocation_traces import LsRequest, ls_trace
from servers import ServerError

CALL_AGAIN = 75  # exit code: sessions are left that did not fit the limit
START_S, CELL_EXTRA_S = 22.0, 5.0  # estimates, for the limit
UNLOADED_RATE, UNLOADED_S = 0.8, 15.0


@dataclass(frozen=True)
class Stretch:
    """A kind of cell: which load, how it arrives, how long."""

    load: str
    arrivals: str
    seconds: float

    @property
    def name(self) -> str:
        """As in the table."""
        return self.load if self.arrivals == "poisson" else f"{self.load} {self.arrivals}"


FULL = (
    Stretch("light", "poisson", 15),
    Stretch("medium", "poisson", 20),
    Stretch("heavy", "poisson", 52),
    Stretch("heavy", "bursty", 20),
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
    warm_s: float
    seed: int
    commit: str

    def key(self, row: PolicyRow, name: str, rate: float, seconds: float, number: int) -> Key:
        """What a cell's figures depend on."""
        device = self.device
        settings = (device.flags, device.model, device.sizes, device.be_places, row, self.warm_s)
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
            "commit": self.commit,
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

    def __init__(self, plan: Plan, store: Store, limit: Limit, console: Console) -> None:
        self.plan, self.store, self.limit, self.console = plan, store, limit, console

    # ---- calibration -----------------------------------------------------------------------

    def calibrate(self) -> Calibration | None:
        """From measured cells; None: not all are there yet."""
        plan, alone = self.plan, POLICY_ROWS[0]
        wanted = [
            (UNLOADED_RATE, UNLOADED_S),
            *((r, plan.calibration_s) for r in plan.device.rates),
        ]
        cells, keys = [], {}
        for rate, seconds in wanted:
            keys[rate] = plan.key(alone, f"calibration {rate:g}", rate, seconds, 0)
            if self.store.find(keys[rate]) is None:
                trace = self._trace("poisson", rate, seconds, 1000)
                cells.append(self._cell(keys[rate], trace))
        if not self._run(alone, cells, None, 0, [s for _, s in wanted]):
            return None
        found = {rate: self._found(key) for rate, key in keys.items()}
        return calibrate(found.pop(UNLOADED_RATE), found)

    def _found(self, key: Key) -> CellFigures:
        figures = self.store.find(key)
        if figures is None:
            raise RuntimeError(f"no figures for {key}")
        return figures

    # ---- rounds ----------------------------------------------------------------------------

    def measure(self, calibration: Calibration) -> bool:
        """Every row of every round; False: some did not fit the limit."""
        for number in range(self.plan.rounds):
            rows = self.plan.rows
            turn = number % len(rows)
            for row in (*rows[turn:], *rows[:turn]):
                if not self._session(row, self.plan.stretches, number, calibration):
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
        cells = []
        for stretch in stretches:
            key = self.cell_key(row, stretch, number, calibration)
            if self.store.find(key) is None:
                rate = calibration.rates[stretch.load]
                trace = self._trace(stretch.arrivals, rate, stretch.seconds, number)
                cells.append(self._cell(key, trace))
        return self._run(row, cells, calibration, number, [s.seconds for s in stretches])

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
            self.store.add(key, figures)
            self.console.print(_line(key, figures))

        return Cell(str(key["cell"]), trace, done)

    def _run(
        self,
        row: PolicyRow,
        cells: Sequence[Cell],
        calibration: Calibration | None,
        number: int,
        seconds: Sequence[float],
    ) -> bool:
        if not cells:
            return True
        warm_s = self.plan.warm_s if row.best_effort else 0.0
        if not self.limit.allows(START_S + warm_s + sum(s + CELL_EXTRA_S for s in seconds)):
            return False
        light = calibration.rates["light"] if calibration else UNLOADED_RATE
        with tempfile.TemporaryDirectory(prefix="omniserve-bench-"):
            Session(
                device=self.plan.device,
                row=row,
                slo=calibration.slo if calibration else None,
                seed=self.plan.seed + number,
                warm_s=self.plan.warm_s,
                warm_trace=self._trace("poisson", light, self.plan.warm_s, 2000),
                cells=cells,
                log_dir=report.OUT / "logs",
            ).run()
        return True


def _line(key: Key, figures: CellFigures) -> str:
    late_ms = max((r.late_ms for r in figures.requests), default=0.0)
    rate = (figures.be_tokens + figures.overflow_tokens) / figures.seconds
    return (
        f"{key['policy']}, {key['cell']}, round {key['round']}: {len(figures.requests)} LS in "
        f"{figures.seconds:.0f} s, BE {rate:.1f} tokens/s; "
        f"client {figures.client_cpu_share:.0%} of a core, at most {late_ms:.0f} ms late; "
        f"servers {figures.server_cpu_s / figures.seconds:.2f} cores"
    )


def _collect(benchmark: Benchmark, calibration: Calibration) -> Run:
    """All cells, by row and stretch, in the order of rounds."""
    plan, cells = benchmark.plan, {}

    def find(row: PolicyRow, stretch: Stretch, rounds: int) -> list[CellFigures]:
        keys = [benchmark.cell_key(row, stretch, n, calibration) for n in range(rounds)]
        return [f for key in keys if (f := benchmark.store.find(key)) is not None]

    for stretch in plan.stretches:
        for row in plan.rows:
            cells[stretch.name, row.name] = find(row, stretch, plan.rounds)
        for row in plan.ablations if stretch.name == HEAVY else ():
            cells[stretch.name, row.name] = find(row, stretch, 1)
    return Run(plan.device, calibration, cells, plan.seed)


def _plan(options: argparse.Namespace) -> Plan:
    device = DEVICES[options.device]
    if options.model_dir is not None:
        device = replace(device, model={**device.model, "uri": f"file://{options.model_dir}"})
    rows = [r for r in POLICY_ROWS if not options.rows or r.name in options.rows]
    ablations = [r for r in ABLATIONS if r.name in options.rows] if options.rows else ABLATIONS
    if POLICY_ROWS[0] not in rows:
        rows = [POLICY_ROWS[0], *rows]
    if options.quick:
        device = replace(device, rates=device.rates[2:7:2])
        return Plan(device, rows[:4], (), QUICK, 1, 6.0, 10.0, options.seed, report.commit())
    return Plan(
        device,
        rows,
        ablations,
        FULL,
        options.rounds,
        20.0,
        40.0,
        options.seed,
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
    options, console = _options(), Console(width=150)
    plan = _plan(options)
    store = Store(report.OUT / "colocation.rounds.jsonl")
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
    report.write("colocation", contents, seed=plan.seed)
    for path in draw(contents, report.OUT):
        console.print(f"plot: {path}")
    return 0 if complete else CALL_AGAIN


if __name__ == "__main__":
    sys.exit(main())
