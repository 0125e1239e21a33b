"""Runs of the paper's evaluation, on all cores. Finished ones are kept: what is cut off goes on
where it stopped."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

import paper_cases
import report
from omniserve_agent.scheduling.admission import AdmissionMode
from omniserve_agent.simulation.experiment import Experiment, Setting
from omniserve_agent.simulation.hardware import Hardware, hardware
from omniserve_agent.simulation.replay import would_attain
from omniserve_agent.simulation.workload import (
    BE_WORKLOADS,
    Arrival,
    backlog,
    latency_sensitive,
)
from paper_cases import ABLATIONS, SLOS, Case
from store import Store, digest_of_files

Figures = dict[str, Any]
PROFILE = "a100x4"
HEADROOMS = {"static_headroom": 0.5, "static_headroom_quarter": 0.25}  # the better one is kept
GOOD_ATTAINMENT = 0.99
REFUSALS_TRIED = 100
TRIAL = 3  # times the usual length: a longer run has its headroom chosen by a trial
TOLD_EVERY = 20  # runs, where there is no terminal


def run(case: Case, seconds: float) -> Figures:
    """What comes out of it; of `static_headroom` with the headroom that suits it best."""
    if case.policy != "static_headroom":
        best = _run(case, case.policy, case.seconds(seconds))
    else:
        trial_s = min(case.seconds(seconds), TRIAL * seconds)
        found = {name: _run(case, name, trial_s) for name in HEADROOMS}
        name = max(found, key=lambda name: _as_an_operator_sees_it(found[name]))
        longer = case.seconds(seconds) > trial_s
        best = _run(case, name, case.seconds(seconds)) if longer else found[name]
    return {key: None if value != value else value for key, value in best.items()}  # JSON's NaN


def _as_an_operator_sees_it(figures: Figures) -> tuple[float, float]:
    return min(GOOD_ATTAINMENT, figures["attained_offered"]), figures["be_tokens_per_s"]


def _run(case: Case, policy: str, seconds: float) -> Figures:
    machine = _machine(case)
    arrivals = latency_sensitive(case.rate / machine.engines, seconds, case.seed, case.arrivals)

    def be() -> Iterator[Arrival]:
        return backlog(case.seed, BE_WORKLOADS[case.be])

    experiment = Experiment(machine, _setting(case, policy, seconds), arrivals, be())
    figures = _figures(experiment)
    if case.tries_refused:
        figures |= _refused(experiment, be)
    return figures | {"seconds": seconds, "headroom": HEADROOMS.get(policy)}


def _machine(case: Case) -> Hardware:
    machine = hardware(PROFILE, case.model, case.cpu_hosts, case.network_gbps)
    return replace(machine, device_blocks=int(machine.device_blocks * case.device_share))


def _setting(case: Case, policy: str, seconds: float) -> Setting:
    ttft_s, tpot_s = SLOS[case.model]
    setting = Setting(
        policy=policy,
        ttft_slo_s=ttft_s,
        tpot_slo_s=case.tpot_slo_ms / 1e3 or tpot_s,
        seconds=seconds,
        warm_up_s=seconds * case.warm_up(),
        seed=case.seed,
        admission=AdmissionMode(case.admission),
    )
    return replace(setting, **ABLATIONS.get(case.ablation, {}))


def _figures(experiment: Experiment) -> Figures:
    """Those of every simulation, and what the paper counts: TTFT alone, and LS throughput. Who is
    certain to miss its TPOT and has not ended counts as late in both."""
    seen = experiment.measure()
    in_time = sum(ttft <= experiment.setting.ttft_slo_s for ttft in seen.ttfts)
    tokens = experiment.ls_output_tokens() * experiment.hardware.engines
    figures = experiment.figures([seen]).row()
    del figures["policy"]
    return figures | {
        "ttft_attained_offered": in_time / seen.offered if seen.offered else None,
        "ttft_attained_finished": in_time / len(seen.ttfts) if seen.ttfts else None,
        "ls_tokens_per_s": tokens / seen.span_s,
    }


def _refused(experiment: Experiment, be: Callable[[], Iterator[Arrival]]) -> Figures:
    """Of a sample of those that admission refused, how many would have attained."""
    tried = would_attain(experiment, be, REFUSALS_TRIED)
    if tried is None:
        return {}
    return {
        "refused_would_attain": tried.share,
        "refused_would_attain_interval": list(tried.interval),
        "refused_tried": tried.tried,
    }


def code() -> str:
    """Names what the figures depend on beside the case: any change of the agent begins anew."""
    files = [Path(__file__), Path(paper_cases.__file__)]
    return digest_of_files([report.ROOT / "agent/omniserve_agent", *files])


def run_all(wanted: Sequence[Case], seconds: float, console: Console) -> list[dict[str, Any]]:
    """Rows of these cases, with progress; runs that are kept are not made again, and one that
    several parts ask for is made once. The longest come first, so that no core waits at the end."""
    store = Store(report.OUT / "paper.rows.jsonl", Figures)
    said = code()
    keys = [case.run_key(seconds) | {"code": said} for case in wanted]
    missing: list[tuple[Case, Figures]] = []
    for case, key in zip(wanted, keys, strict=True):
        if store.find(key) is None and all(key != other for _, other in missing):
            missing.append((case, key))
    missing.sort(key=lambda one: -one[0].seconds(seconds))
    _run_missing(store, missing, seconds, console)
    return [
        {"device": PROFILE, **case.labels(), **figures}
        for case, key in zip(wanted, keys, strict=True)
        if (figures := store.find(key)) is not None
    ]


def _run_missing(
    store: Store[Figures],
    missing: Sequence[tuple[Case, Figures]],
    seconds: float,
    console: Console,
) -> None:
    cores = len(os.sched_getaffinity(0))
    with Progress(console=console) as progress, ProcessPoolExecutor(cores) as pool:
        task = progress.add_task("simulating", total=len(missing))
        pending = {pool.submit(run, case, seconds): key for case, key in missing}
        try:
            for at, done in enumerate(as_completed(pending), 1):
                store.add(pending[done], done.result())
                progress.advance(task)
                if not console.is_terminal and at % TOLD_EVERY == 0:
                    console.print(f"simulated: {at} of {len(missing)} runs")
        finally:
            pool.shutdown(cancel_futures=True)
