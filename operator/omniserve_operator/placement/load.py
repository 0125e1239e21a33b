"""What a newcomer would do to an engine's LS services, from what its agent measured. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from omniserve_crds.servingnode import EngineReport
from omniserve_operator.placement.board import Slot
from omniserve_operator.world import Node, Service

# The load that an LS service stands for while nothing has been measured of it.
UNMEASURED_LOAD = 0.05


@dataclass(frozen=True)
class Prediction:
    """Mean time per output token of LS requests on an engine, now and with the newcomer."""

    before_ms: float
    after_ms: float

    @property
    def added_ms(self) -> float:
        return self.after_ms - self.before_ms


def prediction(slot: Slot, newcomer: Service) -> Prediction | None:
    """None where the engine has not measured what it takes.

    BE yields to LS, so what BE adds to an iteration now does not count against an LS newcomer, and
    a BE newcomer adds nothing that LS cannot have back. An LS service brings one row more per
    iteration than is seen now: its own, and one for each LS neighbour that does not serve yet.
    """
    engine = report_of(slot)
    if engine is None or engine.iteration_micros is None or engine.row_micros is None:
        return None
    best_effort = engine.be_iteration_micros
    if best_effort is None:
        if any(not other.is_ls for other in slot.occupants.values()):
            return None  # what is measured is not what LS alone would take
        best_effort = 0
    before = max(0, engine.iteration_micros - best_effort) / 1000
    rows = newcomer.is_ls + len(_unmeasured(slot, newcomer))
    return Prediction(before, before + rows * engine.row_micros / 1000)


def report_of(slot: Slot) -> EngineReport | None:
    """What the agent says of the engine that is meant for the device."""
    return slot.node.engine(slot.device, slot.engine.key) if slot.engine else None


def _unmeasured(slot: Slot, newcomer: Service) -> list[Service]:
    """LS neighbours whose rows are not in the engine's figures yet."""
    return [
        other
        for other in slot.neighbours(newcomer)
        if other.is_ls and not _serves(slot.node, other.uid)
    ]


def _serves(node: Node, uid: str) -> bool:
    report = node.report(uid)
    return report is not None and report.state == "Ready"


def tpot_slo_ms(service: Service) -> int | None:
    slo = service.spec.slo if service.spec else None
    return slo.tpot_ms if slo else None


def tightest(services: Iterable[Service]) -> Service | None:
    """The LS service with the shortest TPOT objective."""
    rated = [(tpot_slo_ms(s), s.key, s) for s in services]
    found = [(tpot, key, s) for tpot, key, s in rated if tpot is not None]
    return min(found, key=lambda entry: entry[:2])[2] if found else None


def ls_load(slot: Slot, newcomer: Service) -> float:
    """Predicted TPOT over the tightest objective, with the newcomer; a guess where unmeasured."""
    ls = [s for s in (*slot.neighbours(newcomer), newcomer) if s.is_ls]
    predicted, strictest = prediction(slot, newcomer), tightest(ls)
    objective = tpot_slo_ms(strictest) if strictest else None
    if predicted is None or not objective:
        return UNMEASURED_LOAD * len(ls)
    return predicted.after_ms / objective


def budget_room(node: Node, service: Service) -> float:
    """The share of an LS service's error budget that is left on a node: 1 none used, 0 all."""
    report = node.report(service.uid)
    slo = service.spec.slo if service.spec else None
    if report is None or report.ls is None or slo is None:
        return 1.0
    window = report.ls
    if window.offered < slo.min_samples:
        return 1.0
    missed = (window.offered - min(window.attained, window.offered)) / window.offered
    return max(0.0, 1.0 - missed / (1 - slo.objective_percent / 100))


def attained_percent(node: Node, uid: str) -> float | None:
    report = node.report(uid)
    if report is None or report.ls is None or report.ls.offered == 0:
        return None
    return 100 * report.ls.attained / report.ls.offered
