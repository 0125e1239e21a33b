"""The policies by name: one list for the engine, the simulator and the command line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from omniserve_agent.scheduling.admission import AdmissionMode, Gate
from omniserve_agent.scheduling.costs import Costs
from omniserve_agent.scheduling.error_budgets import ErrorBudgets
from omniserve_agent.scheduling.fixed_caps import FixedCaps
from omniserve_agent.scheduling.gpu_only_priority import GpuOnlyPriority
from omniserve_agent.scheduling.latency import Correction, LatencyModel
from omniserve_agent.scheduling.ls_alone import LsAlone
from omniserve_agent.scheduling.omniserve import Omniserve
from omniserve_agent.scheduling.plan import Caps, Policy
from omniserve_agent.scheduling.static_headroom import StaticHeadroom
from omniserve_agent.scheduling.synchronous_offload import SynchronousOffload


@dataclass(frozen=True, slots=True)
class Machine:
    """What a policy may know of the engine it plans for."""

    caps: Caps
    model: LatencyModel
    host_bytes_per_s: float  # what the host's attention workers read together
    kv_bytes: float  # of one token on the host, all layers
    overflow_jobs: int = 0  # places in a CPU-only engine, for `static_headroom`


POLICIES: dict[str, Callable[[Machine], Policy]] = {
    "fixed_caps": lambda m: FixedCaps(m.caps),
    "omniserve": lambda m: Omniserve(m.caps, m.model, m.kv_bytes),
    "static_headroom": lambda m: StaticHeadroom(m.caps, m.model, 0.5, m.overflow_jobs),
    "static_headroom_quarter": lambda m: StaticHeadroom(m.caps, m.model, 0.25, m.overflow_jobs),
    "gpu_only_priority": lambda m: GpuOnlyPriority(m.caps, m.model),
    "synchronous_offload": lambda m: SynchronousOffload(
        m.caps, m.model, m.host_bytes_per_s, m.kv_bytes
    ),
    "ls_alone": lambda m: LsAlone(m.caps, m.model),
}


def gate_for(policy: Policy, machine: Machine, mode: AdmissionMode) -> Gate:
    """Admission beside a policy, in its order and, if it predicts, at its prices."""
    predicting = policy.inner if isinstance(policy, LsAlone) else policy
    if isinstance(predicting, Omniserve):
        return Gate(predicting.costs, machine.caps, mode)
    costs = Costs(machine.model, Correction(), ErrorBudgets(enabled=False))
    return Gate(costs, machine.caps, mode, by_laxity=False)


def make(name: str, machine: Machine) -> Policy:
    """The policy of this name. KeyError-free: ValueError names the choices."""
    if name not in POLICIES:
        raise ValueError(f"policy is {name!r}; use {', '.join(POLICIES)}")
    return POLICIES[name](machine)
