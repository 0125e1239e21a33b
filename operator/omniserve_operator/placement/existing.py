"""What runs already, seen from what is wanted now. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from omniserve_crds.servingnode import (
    EngineAssignment,
    RunReason,
    ServiceAssignment,
    ServiceRunState,
)
from omniserve_operator.placement.eligibility import leaving, mismatch
from omniserve_operator.world import Node, Service


@dataclass(frozen=True)
class Existing:
    """One assignment of a service that still exists."""

    service: Service
    node: Node
    assignment: ServiceAssignment
    engine: EngineAssignment

    @property
    def outdated(self) -> bool:
        """Its engine is not the one that the service asks for now."""
        return self.service.spec is not None and self.engine.key != self.service.engine_key

    @property
    def ready(self) -> bool:
        """It answers, as far as is known, and on this engine, not on one that went before."""
        report = self.node.report(self.assignment.uid)
        if report is None or report.state is not ServiceRunState.READY:
            return False
        device = self.assignment.device
        if self.node.engines(device):
            same = self.node.engine(device, self.engine.key) is not None
        else:
            same = report.observed_generation >= self.assignment.generation
        return same and self.node.reporting

    @property
    def starting(self) -> bool:
        """It does not answer yet; one that has failed is no change that goes on."""
        report = self.node.report(self.assignment.uid)
        failed = report is not None and report.state is ServiceRunState.FAILED
        return not self.ready and not failed

    @property
    def drained(self) -> bool:
        """Its agent has been told to drain it and takes nothing new, or cannot be reached."""
        if not self.assignment.drain:
            return False
        report = self.node.report(self.assignment.uid)
        return (
            not self.node.reporting
            or report is None
            or report.state in (ServiceRunState.DRAINING, ServiceRunState.FAILED)
            or report.reason == RunReason.DRAINED
        )

    def why_it_goes(self, upgrading: str | None) -> str | None:
        """Why it should not stay where it is; None where it may."""
        spec, device = self.service.spec, self.node.device(self.assignment.device)
        if spec is None:
            return None
        if self.node.status.devices and (device is None or not device.healthy):
            return f"device {self.assignment.device} is gone or not healthy"
        if self.node.name == upgrading:
            return "its agent is being upgraded"
        return leaving(spec, self.node) or mismatch(spec, self.node)


def existing_on(node: Node, services: dict[str, Service]) -> list[Existing]:
    """Assignments of a node whose service and engine are there."""
    if node.spec is None:
        return []
    engines = {engine.device: engine for engine in node.spec.engines}
    return [
        Existing(services[a.uid], node, a, engines[a.device])
        for a in node.spec.assignments
        if a.uid in services and a.device in engines
    ]
