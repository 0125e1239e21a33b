"""How well the latency model predicts: held-out loads, beside the repeatability floor.

The device is profiled as at a first start, the model corrected online as the engine would, and
judged on other loads with what a plan knows: its rows, and joins as `InFlight` foresees them with
the KV that the host is then expected to read (beside it: with the joins as they came). Passes that
waited for the host are shown apart; no plan predicts them by the model. Beside it, by kind, the
floor (`latency_floor.py`): what the median of identical iterations scores. The overall floor has
the kinds as often as the judged loads have them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

import report
from latency_floor import KINDS, Scores, floors, kind_with_joins, mixed
from omniserve_agent.engine.build import build_engine, profiled
from omniserve_agent.engine.loop import Engine
from omniserve_agent.engine.messages import EngineConfig, ServiceClass
from omniserve_agent.engine.profiling import Timed, joined_load, mixed_load, observe
from omniserve_agent.scheduling.costs import Load
from omniserve_agent.scheduling.fixed_caps import FixedCaps
from omniserve_agent.scheduling.in_flight import InFlight
from omniserve_agent.scheduling.jobs import JobIndex, Stage
from omniserve_agent.scheduling.latency import (
    FEATURES,
    Correction,
    LatencyModel,
    Work,
    accuracy,
)
from omniserve_agent.scheduling.omniserve import kind_of
from omniserve_agent.scheduling.plan import Caps, Plan, Room, Unlearning

LONGEST_TOKENS = 2048
MOST_STEPS = 100_000
Figures = dict[str, float]
FLOOR = (
    *("floor_mean_accuracy", "floor_p90_accuracy"),
    *("error_over_floor", "p90_error_over_floor"),
)
COLUMNS = {
    "mean_accuracy": "mean accuracy",
    "p90_accuracy": "P90 accuracy",
    "mean_accuracy_with_joins_as_they_came": "joins known",
    "floor_mean_accuracy": "floor's mean",
    "floor_p90_accuracy": "floor's P90",
    "error_over_floor": "error / floor's",
    "p90_error_over_floor": "P90 error / floor's",
}


@dataclass(frozen=True, slots=True)
class Seen:
    """An iteration as it was planned and as it was."""

    planned: Work
    work: Work
    seconds: float

    @property
    def kind(self) -> str:
        """One of KINDS, or `sweep`."""
        return kind_with_joins(self.work, self.planned.joined_rows)


@dataclass
class Foreseeing(Unlearning):
    """Fixed caps beside which joins are foreseen as `omniserve` foresees them."""

    caps: Caps
    token_bytes: float
    seen: list[Seen] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._inner, self._flights = FixedCaps(self.caps), InFlight(self.caps.layers)
        self.terms = self._inner.terms
        self._load, self._lanes = Load(), 0

    def plan(self, jobs: JobIndex, room: Room, now_s: float) -> Plan:
        """See `Policy`."""
        self._flights.settle(jobs.count(ServiceClass.BE, Stage.HOPPING))
        plan = self._inner.plan(jobs, room, now_s)
        self._lanes = plan.join_rows
        step_bytes = jobs.offloaded_mean * self.token_bytes / self.caps.layers
        self._load = Load().joined(self._flights.runs(self._lanes), step_bytes)
        return plan

    def observed(self, work: Work, seconds: float) -> None:
        """See `Policy`."""
        joins = self._load.work()
        planned = (
            work
            if work.waited
            else replace(
                work,
                joined_rows=joins.joined_rows,
                host_kv_bytes=joins.host_kv_bytes,
                logit_rows=work.logit_rows - int(work.joined_rows[-1]),
            )
        )
        self.seen.append(Seen(planned, work, seconds))
        self._flights.observed(work.joined_rows, self._lanes)


def held_out(engine: Engine, seed: int, requests: int) -> list[Seen]:
    """BE on the device and, beside other chats, from the host."""
    limits, caps = engine.intake.limits, engine.policy.caps
    offloaded = replace(caps, be_device_residency=False)
    loads: list[tuple[Caps, list[Timed]]] = [
        (caps, mixed_load(seed, requests, limits.vocab_size, LONGEST_TOKENS)),
        (offloaded, joined_load(seed, limits.vocab_size, LONGEST_TOKENS)),
    ]
    seen = []
    for those, load in loads:
        engine.policy = policy = Foreseeing(those, engine.residency.host.token_bytes)
        observe(engine, load, MOST_STEPS)
        seen += policy.seen
    return seen


def score(model: LatencyModel, seen: Sequence[Seen], *, planned: bool) -> list[float]:
    """Accuracies in order of time, the model corrected after each by what was."""
    correction, scores = Correction(), []
    for one in seen:
        kind = kind_of(one.work)
        predicted = model.predict(one.planned if planned else one.work)
        scores.append(accuracy(correction.apply(kind, predicted), one.seconds))
        correction.observe(kind, model.predict(one.work), one.seconds)
    return scores


def summary(scores: Sequence[float]) -> Figures:
    """Mean, and what nine of ten iterations reach."""
    return {
        "mean_accuracy": statistics.fmean(scores),
        "p90_accuracy": sorted(scores)[len(scores) // 10],
    }


def main() -> None:
    """Profile, judge, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model-dir", type=Path, required=True)
    parser.add_argument("--requests", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device-cores", type=int, nargs="+", default=[0])
    parser.add_argument("--host-cores", type=int, nargs="+", default=[1])
    options = parser.parse_args()
    console = Console()
    config = EngineConfig(
        model_dir=str(options.model_dir),
        device_cores=options.device_cores,
        host_cores=options.host_cores,
        host_workers=len(options.host_cores),
        device_kv_bytes=48 << 20,
        host_kv_bytes=512 << 20,
        max_model_len=LONGEST_TOKENS,
    )
    whole_machine = os.sched_getaffinity(0)  # the engine pins this thread
    started = time.monotonic()
    model = profiled(config, lambda *_: None, fresh=True).latency
    console.print(f"profiled in {time.monotonic() - started:.0f} s")
    os.sched_setaffinity(0, whole_machine)
    engine, _ = build_engine(config, lambda *_: None)
    seen = held_out(engine, options.seed + 1, options.requests)
    found = floors(engine, engine.policy.caps)
    engine.close()
    os.sched_setaffinity(0, whole_machine)
    figures = judged(model, seen)
    beside_floors(figures, found)
    console.print(table_of(figures), model)
    report.write(
        "latency_model",
        {**headline(figures), "kinds": figures, "model": coefficients(model)},
        seed=options.seed,
    )


def headline(figures: Mapping[str, Figures]) -> Figures:
    """Accuracy of all iterations, that of the floor, and the error over the floor's."""
    found = figures["all"]
    names = ("mean_accuracy", "p90_accuracy", "iterations", *FLOOR)
    return {name: found[name] for name in names if name in found}


def beside_floors(figures: Mapping[str, Figures], found: Scores) -> None:
    """Add every kind's floor to its figures, and of all kinds as often as they were judged."""
    counts = {kind: figures[kind]["iterations"] for kind in KINDS if kind in figures}
    for name, row in figures.items():
        scores = {kind: found.get(kind, ()) for kind in (KINDS if name == "all" else (name,))}
        if not any(scores.values()):
            continue
        mean, p90 = mixed(scores, counts)
        row["floor_iterations"] = sum(len(some) for some in scores.values())
        row["floor_mean_accuracy"], row["floor_p90_accuracy"] = mean, p90
        row["error_over_floor"] = (1.0 - row["mean_accuracy"]) / (1.0 - mean)
        row["p90_error_over_floor"] = (1.0 - row["p90_accuracy"]) / (1.0 - p90)


def judged(model: LatencyModel, seen: Sequence[Seen]) -> dict[str, Figures]:
    """By kind, and of all that did not wait."""
    planned, actual = (score(model, seen, planned=one) for one in (True, False))
    found: dict[str, Figures] = {}
    for name in ("all", *KINDS, "sweep"):
        chosen = [
            i
            for i, one in enumerate(seen)
            if one.kind == name or (name == "all" and not one.work.waited)
        ]
        if chosen:
            found[name] = {
                "iterations": len(chosen),
                **summary([planned[i] for i in chosen]),
                "mean_accuracy_with_joins_as_they_came": statistics.fmean(
                    actual[i] for i in chosen
                ),
                "median_ms": 1e3 * statistics.median(seen[i].seconds for i in chosen),
            }
    return found


def coefficients(model: LatencyModel) -> dict[str, float]:
    """Seconds per unit."""
    return {name: getattr(model, name) for name in FEATURES}


def table_of(figures: Mapping[str, Figures]) -> Table:
    """For people."""
    table = Table("iterations", "count", *COLUMNS.values(), "median ms")
    for name, row in figures.items():
        shown = [f"{row[column]:.3f}" if column in row else "" for column in COLUMNS]
        table.add_row(name, str(row["iterations"]), *shown, f"{row['median_ms']:.1f}")
    return table


if __name__ == "__main__":
    main()
