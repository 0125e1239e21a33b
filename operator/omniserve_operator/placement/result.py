"""What a plan says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from omniserve_crds.servingnode import ServingNodeSpec
from omniserve_operator.placement.judge import NoOffer
from omniserve_operator.world import AgentPod, Service, Verdict


class Phase(StrEnum):
    """Where a replica is in its life, as the operator wants it."""

    STAYS = "Stays"
    LEAVES = "Leaves"  # serves until its replacement answers
    DRAINS = "Drains"  # no endpoint any more; finishes what runs


@dataclass(frozen=True)
class Replica:
    """One replica and why it is there, or goes."""

    node: str
    device: str
    phase: Phase
    why: str
    ready: bool


@dataclass(frozen=True)
class ServicePlan:
    """What becomes of one service."""

    service: Service
    accepted: Verdict
    allowed: int  # replicas wanted, within the namespace's quota
    port: int | None
    replicas: tuple[Replica, ...]
    scheduled: Verdict
    progressing: Verdict
    refusals: tuple[NoOffer, ...] = ()

    @property
    def staying(self) -> tuple[Replica, ...]:
        return tuple(r for r in self.replicas if r.phase is Phase.STAYS)


@dataclass(frozen=True)
class Plan:
    """By service uid and by node name."""

    services: Mapping[str, ServicePlan]
    nodes: Mapping[str, ServingNodeSpec]
    restarts: tuple[AgentPod, ...] = ()
    closing: frozenset[str] = frozenset()  # nodes that lose all addresses, to be drained then
