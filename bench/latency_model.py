"""How well the latency model predicts: held-out mixed load, beside the repeatability floor.

The model is profiled, fitted on one seeded mix of LS and BE requests, corrected online as the
engine would, and judged on another mix. The floor is what the median of nearly identical
iterations scores: no model can do better on this machine.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

import report
from omniserve_agent.engine.build import build_engine
from omniserve_agent.engine.loop import Engine
from omniserve_agent.engine.messages import EngineConfig, SamplingParams, ServiceClass, Submit
from omniserve_agent.engine.model.model import Model
from omniserve_agent.engine.profiling import (
    Observation,
    base_model,
    largest_iteration,
    mixed_load,
    observe,
)
from omniserve_agent.scheduling.latency import Correction, LatencyModel, accuracy, fit
from omniserve_agent.scheduling.omniserve import kind_of

FLOOR_REPEATS = 60
LONGEST_TOKENS = 2048


def score(model: LatencyModel, observations: Sequence[Observation]) -> list[float]:
    """Accuracies in order of time, the model corrected after each."""
    correction, scores = Correction(), []
    for seen in observations:
        predicted = model.predict(seen.work)
        scores.append(accuracy(correction.apply(kind_of(seen.work), predicted), seen.seconds))
        correction.observe(kind_of(seen.work), predicted, seen.seconds)
    return scores


def floor(engine: Engine, vocabulary: int) -> list[float]:
    """Accuracies of the median of nearly identical iterations: decode steps, short contexts."""
    scores = []
    for rows in (1, 4, 8):
        dice = random.Random(rows)
        arrivals = [
            (
                0,
                Submit(
                    request_id=f"floor-{rows}-{i}",
                    service="bench/ls",
                    service_class=ServiceClass.LS,
                    prompt=[dice.randrange(10, vocabulary) for _ in range(32)],
                    max_tokens=FLOOR_REPEATS,
                    sampling=SamplingParams(temperature=0.0),
                    ignore_eos=True,
                ),
            )
            for i in range(rows)
        ]
        seen = [o.seconds for o in observe(engine, arrivals, 10_000)][-FLOOR_REPEATS + 5 :]
        middle = statistics.median(seen)
        scores += [accuracy(middle, seconds) for seconds in seen]
    return scores


def summary(scores: Sequence[float]) -> tuple[float, float]:
    """Mean, and what nine of ten iterations reach."""
    return statistics.fmean(scores), sorted(scores)[len(scores) // 10]


def main() -> None:
    """Profile, fit, judge, print, write."""
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
    engine, _ = build_engine(config, lambda *_: None)
    started = time.monotonic()
    model: Model = engine.executor.model  # type: ignore[attr-defined]
    base = base_model(model, lambda *_: None, largest_iteration(config))
    vocabulary = engine.intake.limits.vocab_size
    training = observe(
        engine, mixed_load(options.seed, options.requests, vocabulary, LONGEST_TOKENS), 100_000
    )
    fitted = fit(base, [o.work for o in training], [o.seconds for o in training])
    console.print(f"profiled and fitted in {time.monotonic() - started:.0f} s")
    held_out = observe(
        engine, mixed_load(options.seed + 1, options.requests, vocabulary, LONGEST_TOKENS), 100_000
    )
    scores, floors = score(fitted, held_out), floor(engine, vocabulary)
    by_kind = {
        name: [s for s, o in zip(scores, held_out, strict=True) if kind_of(o.work) == name]
        for name in ("decode", "prefill", "sweep")
    }
    engine.close()
    os.sched_setaffinity(0, whole_machine)
    table = Table("iterations", "count", "mean accuracy", "P90 accuracy", "median ms")
    for name, chosen in [("all", scores), *by_kind.items(), ("floor (identical)", floors)]:
        if chosen:
            mean, p90 = summary(chosen)
            times = [o.seconds for o in held_out if name in ("all", kind_of(o.work))]
            middle = f"{1e3 * statistics.median(times):.1f}" if times else ""
            table.add_row(name, str(len(chosen)), f"{mean:.3f}", f"{p90:.3f}", middle)
    console.print(table, fitted)
    mean, p90 = summary(scores)
    floor_mean, floor_p90 = summary(floors)
    report.write(
        "latency_model",
        {
            "mean_accuracy": mean,
            "p90_accuracy": p90,
            "floor_mean_accuracy": floor_mean,
            "floor_p90_accuracy": floor_p90,
            "iterations": len(scores),
        },
        seed=options.seed,
    )


if __name__ == "__main__":
    main()
