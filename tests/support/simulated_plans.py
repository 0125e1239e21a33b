"""What short simulated runs come to: a line for each run, with its figures and all of its plans.

    python -m support.simulated_plans

`tests/scheduling/test_compiled.py` compares it between the package as it is and compiled.
"""

import hashlib
import json
from dataclasses import asdict, fields, is_dataclass, replace
from enum import Enum

from omniserve_agent.scheduling import omniserve, policies
from omniserve_agent.scheduling.admission import AdmissionMode
from omniserve_agent.scheduling.jobs import Job
from omniserve_agent.simulation.experiment import Experiment, Setting
from omniserve_agent.simulation.hardware import hardware
from omniserve_agent.simulation.workload import BE_WORKLOADS, backlog, latency_sensitive
from support.policies import Watched

RATE, SECONDS = 6.0, 8.0
MACHINES = {
    "resident": hardware("h200-16core", "llama-3-8b"),
    "contended": replace(hardware("a100x4", "llama-2-70b", cpu_hosts=1), device_blocks=1500),
}
SETTINGS = {
    "as it is": {},
    "one ahead, drafts": {"depth": 1, "drafts": 2},
    "rejecting": {"admission": AdmissionMode.REJECT, "ttft_slo_s": 0.5},
    "on the host": {"admission": AdmissionMode.QUEUE, "be_device_residency": False},
}
PROMISED = {"decode-heavy": 20}  # percent, to a BE service


def main():
    """Where the package is; then every policy, in every setting where it has use of them."""
    print(omniserve.__file__)
    for machine in MACHINES:
        for policy in policies.POLICIES:
            for setting in SETTINGS if policy == "omniserve" else ("as it is",):
                print(json.dumps(run(machine, policy, setting)))


def run(machine, policy, setting):
    """One: what it was, how many plans it made and which, what came of them."""
    chosen = Setting(policy=policy, seconds=SECONDS, warm_up_s=1.0, **SETTINGS[setting])
    arrivals = latency_sensitive(RATE, SECONDS, 1, "bursty")
    experiment = Experiment(MACHINES[machine], chosen, arrivals, mixed_backlog())
    node, plans = experiment._node, hashlib.sha256()
    node.min_shares = PROMISED if setting in ("as it is", "on the host") else {}
    inner = node.policy

    def plan(jobs, *rest):
        made = inner.plan(jobs, *rest)
        plans.update(json.dumps(shown((made, inner.state, inner.terms(jobs)))).encode())
        return made

    node.policy = Watched(inner, plan=plan)
    figures = asdict(experiment.run())
    case = (machine, policy, setting)
    return {
        "run": case,
        "iterations": node.counts.iterations,
        "plans": plans.hexdigest(),
        **figures,
    }


def mixed_backlog():
    """BE services in turn."""
    each = [backlog(1, work) for work in BE_WORKLOADS.values()]
    while True:
        yield from map(next, each)


def shown(value):
    """A plan as plain data; jobs by their handles. 1 and 1.0 are not the same."""
    if isinstance(value, Job):
        return value.handle
    if isinstance(value, Enum):
        return value.name
    if is_dataclass(value):
        return [shown(getattr(value, field.name)) for field in fields(value)]
    if isinstance(value, dict):
        return {key: shown(one) for key, one in value.items()}
    return [shown(one) for one in value] if isinstance(value, tuple | list) else value


if __name__ == "__main__":
    main()
