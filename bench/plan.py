"""How long the `omniserve` policy thinks: 100 LS and 400 BE requests, at 32 and 80 layers.

The policy drives a simulated engine (virtual time, no waiting), so that the state it plans for
changes as it would: prompts advance, rows hop from layer to layer, requests end and others come.
Every plan is timed. The collector is frozen as the engine process freezes it.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np
from rich.console import Console
from rich.table import Table

import report
from omniserve_agent.scheduling import policies
from omniserve_agent.scheduling.jobs import Job, JobIndex, ServiceClass
from omniserve_agent.scheduling.latency import Work
from omniserve_agent.scheduling.plan import Caps, Plan, Policy, PolicyState, Room, Terms
from omniserve_agent.simulation.experiment import Setting, caps_for
from omniserve_agent.simulation.hardware import Hardware, hardware
from omniserve_agent.simulation.node import Node
from omniserve_agent.simulation.workload import DECODE_HEAVY, SHAREGPT, Arrival, Workload

LS, BE = ServiceClass.LS, ServiceClass.BE
MACHINES = {32: ("h200-16core", "llama-3-8b"), 80: ("a100x4", "llama-2-70b")}
DEVICE_TOKENS = 60_000  # KV is contended: LS alone needs most of it


@dataclass
class Timed:
    """A policy that notes how long each plan took."""

    inner: Policy
    seconds: list[float] = field(default_factory=list)
    stages: Counter[str] = field(default_factory=Counter)

    def plan(self, jobs: JobIndex, room: Room, now_s: float) -> Plan:
        """The inner policy's plan."""
        started = time.perf_counter()
        plan = self.inner.plan(jobs, room, now_s)
        self.seconds.append(time.perf_counter() - started)
        return plan

    @property
    def caps(self) -> Caps:
        """The engine's limits."""
        return self.inner.caps

    def terms(self, jobs: JobIndex) -> Terms:
        """Passed on."""
        return self.inner.terms(jobs)

    @property
    def state(self) -> PolicyState | None:
        """Passed on."""
        return self.inner.state

    def arrived(self, job: Job) -> None:
        """Passed on."""
        self.inner.arrived(job)

    def observed(self, work: Work, seconds: float) -> None:
        """Passed on."""
        self.inner.observed(work, seconds)

    def expects(self, work: Work) -> float:
        """Passed on."""
        return self.inner.expects(work)

    def judged(self, service: str, attained: bool, now_s: float) -> None:
        """Passed on."""
        self.inner.judged(service, attained, now_s)


def machine(layers: int) -> Hardware:
    """The hardware with this many layers; its device KV cut down to what is contended."""
    found = hardware(*MACHINES[layers])
    return replace(found, device_blocks=DEVICE_TOKENS // 16)


def drive(policy: str, layers: int, ls: int, be: int, plans: int, warm_up: int, seed: int) -> Timed:
    """Keep `ls` and `be` requests in the engine for so many plans."""
    shape = machine(layers)
    caps = caps_for(shape, Setting(policy=policy))
    inner = policies.make(
        policy,
        policies.Machine(caps, shape.latency, shape.host_bytes_per_s, shape.model.kv_bytes),
    )
    timed = Timed(inner)
    node = Node(shape, timed, seed)
    random = np.random.default_rng(seed)
    for iteration in range(warm_up + plans):
        if iteration == warm_up:
            timed.seconds.clear()
            gc.collect()
            gc.freeze()
        _fill(node, random, {LS: (SHAREGPT, ls), BE: (DECODE_HEAVY, be)})
        node.step(node.now_s + 1.0)
        for job in (run.job for run in node.runs.values()) if iteration % 50 == 0 else ():
            timed.stages[f"{job.service_class} {job.stage.name.lower()}"] += 1
    gc.unfreeze()
    return timed


def _fill(
    node: Node, random: np.random.Generator, wanted: dict[ServiceClass, tuple[Workload, int]]
) -> None:
    there = Counter(run.job.service_class for run in node.runs.values())
    for service_class, (work, count) in wanted.items():
        for _ in range(count - there[service_class]):
            prompt, output = (int(one.draw(random, 1)[0]) for one in (work.prompt, work.output))
            node.submit(Arrival(node.now_s, service_class, prompt, output, work.name))


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ls", type=int, default=100)
    parser.add_argument("--be", type=int, default=400)
    parser.add_argument("--plans", type=int, default=4000)
    parser.add_argument("--warm-up", type=int, default=1500, help="iterations before plans count")
    parser.add_argument("--policy", default="omniserve")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    table = Table("layers", "LS", "BE", "plan us p50", "p99", "max", "requests by stage (mean)")
    rows = []
    for layers in MACHINES:
        timed = drive(
            options.policy,
            layers,
            options.ls,
            options.be,
            options.plans,
            options.warm_up,
            options.seed,
        )
        p50, p99, most = (1e6 * np.percentile(timed.seconds, share) for share in (50, 99, 100))
        seen = -(-(options.plans + options.warm_up) // 50)
        stages = ", ".join(f"{n} {c / seen:.0f}" for n, c in sorted(timed.stages.items()))
        table.add_row(
            str(layers), str(options.ls), str(options.be), *(f"{x:.0f}" for x in (p50, p99, most)),
            stages,
        )  # fmt: skip
        rows.append(
            {
                "layers": layers,
                "ls": options.ls,
                "be": options.be,
                "plan_us_p50": float(p50),
                "plan_us_p99": float(p99),
                "plan_us_max": float(most),
            }
        )
    Console().print(table)
    report.write("plan", {"policy": options.policy, "rows": rows, **rows[0]}, seed=options.seed)


if __name__ == "__main__":
    main()
