"""What is said of the first BE request in the queue is what the policy's plan does with it."""

import random
from collections import Counter
from dataclasses import replace

import pytest

from omniserve_agent.scheduling import policies
from omniserve_agent.scheduling.be_queue import NEXT
from omniserve_agent.scheduling.explain import Moment, explain
from omniserve_agent.scheduling.jobs import ServiceClass, Stage
from omniserve_agent.simulation.experiment import Setting, machine_for
from omniserve_agent.simulation.hardware import hardware
from omniserve_agent.simulation.node import Node
from omniserve_agent.simulation.workload import Arrival

SMALL = replace(hardware("h200-16core", "llama-3-8b"), device_blocks=260, slots=6)
SMALL = replace(SMALL, max_device_rows=16)
STEPS = 400
LET_PASS = 0.01  # BE that gives way in the same plan makes room that no figure shows before


class Watched:
    """A policy whose plans are held against its reasons."""

    def __init__(self, inner):
        self._inner, self.seen = inner, Counter()

    def plan(self, jobs, room, now_s):
        plan = self._inner.plan(jobs, room, now_s)
        for first in jobs.at(ServiceClass.BE, Stage.WAITING)[:1]:
            said = explain(Moment(jobs, room, self._inner.terms(jobs)), first)
            taken = first in [admission.job for admission in plan.admissions]
            self.seen[taken == (said == NEXT)] += 1
        return plan

    def __getattr__(self, name):
        return getattr(self._inner, name)


@pytest.mark.parametrize("name", policies.POLICIES)
def test_reasons_agree_with_plans(name):
    chance = random.Random(7)
    watched = Watched(policies.make(name, machine_for(SMALL, Setting(policy=name))))
    node = Node(SMALL, watched, 7)
    for step in range(STEPS):
        for _ in range(60 if step == 0 else chance.random() < 0.2):
            kind, prompt = chance.choice(list(ServiceClass)), chance.randint(1, 1200)
            node.submit(Arrival(node.now_s, kind, prompt, chance.randint(1, 60)))
        node.step(node.now_s + 1.0)
    assert watched.seen[True] > 20
    assert watched.seen[False] <= LET_PASS * watched.seen.total()
