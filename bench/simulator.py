"""The simulator against a measured co-location run: the same requests, policies and profile.

Reads the cells that `make bench-colocation` kept (bench/out/colocation.rounds.jsonl) of one device
and drives the simulator through the same sessions: BE alone, then the loads in their
order. Prints attainment and BE tokens per second of each cell beside what was measured;
bench/out/simulator.json. Not modelled: HTTP and tokenising, whose time is part of every measured
TTFT; the CPU-only engine of `static_headroom`, whose tokens are left out on both sides.
`--device cpu --profile FILE`: of this machine's own device, whose profile `omniserve-agent profile
--out FILE` wrote, with what host reads cost it.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

import report
from colocation_client import CellFigures, LsResult
from colocation_figures import LOADS
from colocation_setup import DEVICES, Device
from colocation_traces import be_backlog, ls_trace
from omniserve_agent.engine.messages import EngineConfig
from omniserve_agent.scheduling.jobs import ServiceClass
from omniserve_agent.settings import size_bytes
from omniserve_agent.simulation.experiment import Experiment, Setting
from omniserve_agent.simulation.hardware import BLOCK_TOKENS, Hardware, hardware
from omniserve_agent.simulation.workload import Arrival

LS, BE = ServiceClass.LS, ServiceClass.BE
EMULATED_PROFILE = "gpu-emulated"
DEFAULTS = EngineConfig(model_dir="")
BE_ALONE_S, LS_WARM_S, WARM_DRAIN_S = 30.0, 5.0, 2.0
WARM_NUMBER = 2000  # of the trace before the first cell
POLICIES = (
    *("ls_alone", "omniserve", "static_headroom", "static_headroom_quarter"),
    *("gpu_only_priority", "synchronous_offload"),
)
CELLS = ("heavy", "medium", "light", "heavy bursty")  # of a session, in its order


class Line(msgspec.Struct):
    """One cell; one that is not kept was measured again, but ran all the same."""

    key: dict[str, Any]
    figures: CellFigures
    kept: bool = True


@dataclass(frozen=True)
class Pair:
    """One cell, measured and simulated."""

    policy: str
    cell: str
    number: int
    measured: tuple[float, float]  # attained/offered, BE tokens per second
    simulated: tuple[float, float]


@dataclass(frozen=True)
class Side:
    """What is simulated: the benchmark's device, and the profile that says what it costs."""

    device: Device
    profile: str

    @property
    def flags(self) -> dict[str, str]:
        """What the benchmark gives the engine."""
        return dict(pairwise(self.device.flags))

    def engine(self) -> Hardware:
        """The profile, with the limits that these flags set."""
        found, flags = hardware(self.profile), self.flags
        found = replace(
            found,
            slots=int(flags["--slots"]),
            join_rows=int(flags["--join-lanes"]),
            max_device_rows=int(flags["--max-device-rows"]),
        )
        if "--device-kv" not in flags:  # an emulated device has what its profile says
            return found
        blocks = size_bytes(flags["--device-kv"]) // (found.model.kv_bytes * BLOCK_TOKENS)
        host = replace(found.hosts[0], kv_bytes=float(size_bytes(flags["--host-kv"])))
        return replace(found, device_blocks=blocks, hosts=(host,))

    def prompt_rows(self) -> tuple[int, int]:
        """Of LS and of BE in an iteration, at most."""
        return (
            int(self.flags.get("--ls-prefill-rows", DEFAULTS.ls_prefill_rows)),
            int(self.flags.get("--be-prefill-rows", DEFAULTS.be_prefill_rows)),
        )

    def best_effort(self, seed: int) -> Iterator[Arrival]:
        """The benchmark's backlog; choices of a request share its prompt."""
        backlog = be_backlog(self.device.sizes, seed, self.device.be_places)
        for number, request in enumerate(backlog):
            for _ in range(request.choices):
                yield Arrival(0.0, BE, len(request.prompt), request.output, "batch", prompt=number)

    def open_jobs(self) -> int:
        """What the places of the benchmark's client come to in choices, on the average."""
        return round(self.device.be_places * (7 + self.device.sizes.long_choices) / 8)


Spans = list[tuple[float, float]]  # when each cell begins and ends


def session(device: Device, cells: Sequence[Line]) -> tuple[list[Arrival], Spans]:
    """LS arrivals of a session, and when each cell begins and ends."""
    key = cells[0].key
    light = LOADS["light"] / LOADS[key["cell"].split()[0]] * key["rate"]
    arrivals = _trace(device, "poisson", light, LS_WARM_S, (key["seed"], WARM_NUMBER), BE_ALONE_S)
    at_s, spans = BE_ALONE_S + LS_WARM_S + WARM_DRAIN_S, []
    for cell in cells:
        key = cell.key
        kind = "bursty" if "bursty" in key["cell"] else "poisson"
        seed = key["seed"], key["round"]
        arrivals += _trace(device, kind, key["rate"], key["seconds"], seed, at_s)
        spans.append((at_s, at_s + cell.figures.seconds))
        at_s += max(cell.figures.seconds, *(_ended_s(one) for one in cell.figures.requests))
    return arrivals, spans


def _trace(
    device: Device, kind: str, rate: float, seconds: float, seed: tuple[int, int], at_s: float
) -> list[Arrival]:
    """As the benchmark makes it, from `at_s` on."""
    trace = ls_trace(
        device.sizes, kind, rate, seconds, (*seed, int(1000 * rate), int(seconds), len(kind))
    )
    return [Arrival(at_s + r.at_s, LS, len(r.prompt), r.output, "chat") for r in trace]


def _ended_s(one: LsResult) -> float:
    """From the start of its cell: the next cell begins once all of them have ended."""
    return one.at_s + ((one.ttft_ms or 0.0) + (one.tpot_ms or 0.0) * (one.tokens - 1)) / 1e3


def simulate(side: Side, cells: Sequence[Line], which: int, policy: str) -> tuple[float, float]:
    """One cell of a session: attained/offered and BE tokens per second."""
    arrivals, spans = session(side.device, cells)
    start_s, end_s = spans[which]
    ttft_ms, tpot_ms = cells[which].key["slo"]
    ls_rows, be_rows = side.prompt_rows()
    setting = Setting(
        policy=policy,
        ttft_slo_s=ttft_ms / 1e3,
        tpot_slo_s=tpot_ms / 1e3,
        seconds=end_s,
        warm_up_s=start_s,
        seed=cells[which].key["round"],
        ls_prefill_rows=ls_rows,
        be_prefill_rows=be_rows,
        be_open=side.open_jobs(),
        overflow=False,
        to_the_end=True,
    )
    seed = cells[which].key["seed"] + cells[which].key["round"]
    figures = Experiment(side.engine(), setting, arrivals, side.best_effort(seed)).run()
    return figures.attained_offered, figures.be_tokens_per_s


def measured(line: Line) -> tuple[float, float]:
    """The same of a kept cell."""
    ttft_ms, tpot_ms = line.key["slo"]
    requests = line.figures.requests
    good = [
        r
        for r in requests
        if r.status == 200
        and r.ttft_ms is not None
        and r.ttft_ms <= ttft_ms
        and (r.tpot_ms is None or r.tpot_ms <= tpot_ms)
    ]
    return len(good) / max(1, len(requests)), line.figures.be_tokens / line.figures.seconds


def read(path: Path, device: str) -> dict[tuple[str, int, int], list[Line]]:
    """Cells by policy, round and session, in the order in which they ran. A kept cell that comes
    after one that follows it in `CELLS` was measured again, in a session of its own."""
    found: dict[tuple[str, int, int], list[Line]] = {}
    for line in (*_lines(path.with_suffix(f".discarded{path.suffix}"), False), *_lines(path, True)):
        key = line.key
        if key["device"] != device or "slo" not in key or key["policy"] not in POLICIES:
            continue
        session = 0
        while cells := found.get((key["policy"], key["round"], session)):
            if CELLS.index(cells[-1].key["cell"]) < CELLS.index(key["cell"]):
                break
            session += 1
        found.setdefault((key["policy"], key["round"], session), []).append(line)
    return found


def _lines(path: Path, kept: bool) -> Iterator[Line]:
    for text in filter(None, path.read_bytes().splitlines() if path.exists() else ()):
        line = msgspec.json.decode(text, type=Line)
        line.kept = kept
        yield line


def pairs(path: Path, side: Side) -> list[Pair]:
    """Every cell."""
    found = []
    for (policy, number, _), cells in sorted(read(path, side.device.name).items()):
        for which, cell in enumerate(cells):
            if cell.kept:
                simulated = simulate(side, cells[: which + 1], which, policy)
                found.append(Pair(policy, cell.key["cell"], number, measured(cell), simulated))
    return found


def main() -> None:
    """Simulate, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds-file", type=Path, default=report.OUT / "colocation.rounds.jsonl")
    parser.add_argument("--device", choices=("emulated", "cpu", "cuda"), default="emulated")
    parser.add_argument("--profile", help="of `omniserve-agent profile --out`; not for emulated")
    options = parser.parse_args()
    if (options.device == "emulated") != (options.profile is None):
        parser.error("--profile: needed for cpu and cuda, and for them alone")
    side = Side(DEVICES[options.device], options.profile or EMULATED_PROFILE)
    found = pairs(options.rounds_file, side)
    table = Table(
        "policy", "load", "round", "attained measured", "simulated", "BE tok/s measured", "sim."
    )
    for p in found:
        table.add_row(
            *(p.policy, p.cell, str(p.number), f"{p.measured[0]:.1%}", f"{p.simulated[0]:.1%}"),
            *(f"{p.measured[1]:.0f}", f"{p.simulated[1]:.0f}"),
        )
    Console().print(table)
    rows = []
    for policy, load in dict.fromkeys((p.policy, p.cell) for p in found):
        mine = [p for p in found if (p.policy, p.cell) == (policy, load)]
        row: dict[str, str | float] = {"device": options.device, "load": load, "policy": policy}
        for name, part in (("measured", "measured"), ("simulated", "simulated")):
            values = [getattr(p, part) for p in mine]
            row[f"attained_offered_{name}"] = statistics.fmean(v[0] for v in values)
            row[f"be_tokens_per_s_{name}"] = statistics.fmean(v[1] for v in values)
        rows.append(row)
        Console().print(row)
    name = "simulator" if options.device == "emulated" else f"simulator_{options.device}"
    report.write(name, {"profile": side.profile, "rows": rows}, seed=0)


if __name__ == "__main__":
    main()
