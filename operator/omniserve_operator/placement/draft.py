"""One service while its plan is made: what stays, what goes, what is missing."""

from __future__ import annotations

from dataclasses import dataclass, field

from omniserve_crds.conditions import Reason
from omniserve_operator.placement.existing import Existing
from omniserve_operator.placement.judge import NoOffer
from omniserve_operator.placement.refusals import verdict
from omniserve_operator.placement.result import Phase, Replica, ServicePlan
from omniserve_operator.tenancy import ACCEPTED, quota_refusal
from omniserve_operator.world import Service, Verdict, World


@dataclass
class Draft:
    """Filled by `plan` in a fixed order and frozen into a ServicePlan at its end."""

    service: Service
    accepted: Verdict
    allowed: int
    existing: list[Existing] = field(default_factory=list)
    why_going: dict[str, str] = field(default_factory=dict)  # by node: they should leave
    surplus: set[str] = field(default_factory=set)  # nodes of replicas nobody wants any more
    recreated: set[str] = field(default_factory=set)  # nodes where the engine was replaced
    new: dict[str, Replica] = field(default_factory=dict)  # by node
    refusals: list[NoOffer] = field(default_factory=list)

    @property
    def frozen(self) -> bool:
        """Not accepted: what runs is left alone, nothing is added."""
        return self.accepted is not ACCEPTED

    @property
    def good(self) -> list[Existing]:
        """Replicas that stay."""
        return [e for e in self._there if not e.outdated and not self._goes(e)]

    @property
    def going(self) -> list[Existing]:
        """Replicas that are to be replaced."""
        return [
            e
            for e in self._there
            if (e.outdated or self._goes(e)) and e.node.name not in self.surplus
        ]

    @property
    def _there(self) -> list[Existing]:
        return [e for e in self.existing if e.node.name not in self.recreated]

    def _goes(self, existing: Existing) -> bool:
        return existing.node.name in self.why_going or existing.node.name in self.surplus

    @property
    def missing(self) -> int:
        """Replicas without a device."""
        if self.frozen:
            return 0
        return max(0, self.allowed - len(self.good) - len(self.new))

    @property
    def all_good_are_ready(self) -> bool:
        return not self.new and all(e.ready for e in self.good)

    def choose_surplus(self) -> None:
        """More replicas than wanted: those go first that do not answer, then the last by name."""
        if self.frozen:
            return
        ranked = sorted(self.good, key=lambda e: (e.assignment.drain, not e.ready, e.node.name))
        self.surplus |= {e.node.name for e in ranked[self.allowed :]}

    def phase(self, existing: Existing) -> Phase:
        """Replicas that leave do so when enough others answer."""
        if self.frozen:
            return Phase.STAYS
        if existing.node.name in self.surplus:
            return Phase.DRAINS
        if existing not in self.going:
            return Phase.STAYS
        still_needed = self.allowed - sum(e.ready for e in self.good)
        ranked = sorted(self.going, key=lambda e: (e.assignment.drain, not e.ready, e.node.name))
        return Phase.LEAVES if existing in ranked[: max(0, still_needed)] else Phase.DRAINS

    def finished(self, world: World, port: int | None) -> ServicePlan:
        """The service's plan."""
        kept = [self._replica(e) for e in self._there]
        replicas = sorted((*kept, *self.new.values()), key=lambda r: (r.node, r.device))
        return ServicePlan(
            service=self.service,
            accepted=self.accepted,
            allowed=self.allowed,
            port=port,
            replicas=tuple(replicas),
            scheduled=self._scheduled(world),
            progressing=self._progressing(),
            refusals=tuple(self.refusals) if self.missing else (),
        )

    def _replica(self, existing: Existing) -> Replica:
        name = existing.node.name
        phase = self.phase(existing)
        why = _previous_why(self.service, name, existing.assignment.device)
        if phase is not Phase.STAYS:
            why = self._why_it_goes(existing)
        return Replica(name, existing.assignment.device, phase, why, existing.ready)

    def _why_it_goes(self, existing: Existing) -> str:
        if existing.node.name in self.surplus:
            return f"goes: {self.allowed} replicas are wanted"
        if existing.outdated:
            return "goes: the model or its settings changed"
        return f"goes: {self.why_going.get(existing.node.name, 'it is replaced')}"

    def _scheduled(self, world: World) -> Verdict:
        service, placed = self.service, len(self.good) + len(self.new)
        if self.frozen:
            words = f"not accepted; {len(self.existing)} replicas run on"
            return Verdict(Reason.PLACED if self.existing else Reason.PENDING, words)
        if service.wanted == 0:
            return Verdict(Reason.PAUSED, _paused(service))
        if self.missing:
            return verdict(placed, self.allowed, self.refusals)
        if self.allowed < service.wanted:
            return quota_refusal(service, self.allowed, world.tenancy(service.namespace))
        return Verdict(Reason.PLACED, f"{placed} of {service.wanted} replicas have a device")

    def _progressing(self) -> Verdict:
        going = self.going
        if self.frozen or (self.service.wanted == 0 and not self.existing):
            return Verdict(Reason.COMPLETE, "nothing is being changed")
        if self.recreated or self._still_recreating():
            places = ", ".join(sorted(self.recreated or self._starting()))
            return Verdict(Reason.RECREATING, f"no room beside the old engine on {places}")
        if outdated := [e for e in going if e.outdated]:
            return Verdict(Reason.ROLLING_OUT, self._rolling(outdated))
        if going:
            return Verdict(Reason.DRAINING, self._rolling(going))
        if self.surplus or self._starting():
            ready = sum(e.ready for e in self.good)
            words = f"{ready} of {self.allowed} replicas answer, {len(self.surplus)} are leaving"
            return Verdict(Reason.ROLLING_OUT, words)
        return Verdict(Reason.COMPLETE, "nothing is being changed")

    def _starting(self) -> list[str]:
        return [*self.new, *(e.node.name for e in self.good if e.starting)]

    def _still_recreating(self) -> bool:
        """A replica that replaced its predecessor does not answer yet."""
        said = [c.reason for c in self.service.status.conditions if c.type == "Progressing"]
        return said == [Reason.RECREATING] and bool(self._starting())

    def _rolling(self, going: list[Existing]) -> str:
        places = "; ".join(f"{e.node.name} {self._why_it_goes(e)}" for e in going[:3])
        if self.missing:
            return f"{places}; no room for a replacement yet"
        starting = ", ".join(sorted(self._starting()))
        return f"{places}; the replacement starts on {starting}" if starting else places


def _paused(service: Service) -> str:
    if service.spec is not None and service.spec.replicas == 0:
        return "spec.replicas is 0"
    return "spec.state is Paused"


def _previous_why(service: Service, node: str, device: str) -> str:
    """The words of the day it was placed."""
    return next(
        (p.why for p in service.status.placements if (p.node, p.device) == (node, device)), ""
    )
