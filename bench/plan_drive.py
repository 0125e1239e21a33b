"""One process of `bench/plan.py`: a policy plans for a simulated engine, every plan is timed.

Time is virtual and nothing waits, so that the state which is planned for changes as it would:
prompts advance, rows hop from layer to layer, requests end and others come. The same seed gives the
same plans. The collector is frozen as the engine process freezes it.
"""

from __future__ import annotations

import gc
import sys
import time
from collections import Counter
from dataclasses import dataclass, field, replace

import msgspec
import numpy as np

from omniserve_agent.scheduling import omniserve, policies
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
STAGES_EVERY = 50  # iterations


class Order(msgspec.Struct, frozen=True):
    """What a process is to measure: `ls` and `be` requests kept in the engine for so many plans."""

    policy: str
    layers: int
    ls: int
    be: int
    plans: int
    warm_up: int  # iterations before plans count
    seed: int


class Times(msgspec.Struct):
    """What it found. Plan by plan the same whoever runs it."""

    compiled: bool
    seconds: list[float]
    stages: dict[str, float]  # requests by class and stage, on the mean


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


def drive(order: Order) -> Timed:
    """Carry it out."""
    shape = machine(order.layers)
    caps = caps_for(shape, Setting(policy=order.policy))
    inner = policies.make(
        order.policy,
        policies.Machine(caps, shape.latency, shape.host_bytes_per_s, shape.model.kv_bytes),
    )
    timed = Timed(inner)
    node = Node(shape, timed, order.seed)
    random = np.random.default_rng(order.seed)
    for iteration in range(order.warm_up + order.plans):
        if iteration == order.warm_up:
            timed.seconds.clear()
            gc.collect()
            gc.freeze()
        _fill(node, random, {LS: (SHAREGPT, order.ls), BE: (DECODE_HEAVY, order.be)})
        node.step(node.now_s + 1.0)
        for job in (run.job for run in node.runs.values()) if iteration % STAGES_EVERY == 0 else ():
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
    """An order on the command line, times on standard output."""
    order = msgspec.json.decode(sys.argv[1], type=Order)
    timed = drive(order)
    seen = -(-(order.plans + order.warm_up) // STAGES_EVERY)
    times = Times(
        compiled=not str(omniserve.__file__).endswith(".py"),
        seconds=timed.seconds,
        stages={name: count / seen for name, count in sorted(timed.stages.items())},
    )
    print(msgspec.json.encode(times).decode())


if __name__ == "__main__":
    main()
