"""An LLMService's status: conditions, placements, rounded figures. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from omniserve_crds.conditions import ConditionStatus, ConditionType, Reason
from omniserve_crds.llmservice import Slo
from omniserve_crds.servingnode import BeWindow
from omniserve_crds.status import (
    MAX_REFUSALS,
    BestEffortStatus,
    Condition,
    LLMServiceStatus,
    PlacementStatus,
    Refusal,
    SloStatus,
)
from omniserve_operator.attainment import (
    Finding,
    Measured,
    Totals,
    Verdict,
    finding,
    totals,
    two_digits,
    with_hysteresis,
)
from omniserve_operator.conditions import Seen, conditions, findings, first_sight, seen
from omniserve_operator.placement.result import Phase, ServicePlan
from omniserve_operator.throttling import round_to, throttled_percent, throttlers, throttling
from omniserve_operator.world import Node, Service

MAX_NAMED = 3
AGENT_SELECTOR = "app.kubernetes.io/name=omniserve,app.kubernetes.io/component=agent"


@dataclass(frozen=True)
class Memory:
    """What is remembered of a service between two looks."""

    slo: Verdict = field(default_factory=Verdict)


def remembered(service: Service) -> Memory:
    """After a restart: what its status says, with the count for a change begun anew."""
    said = _said(service.status.conditions, ConditionType.SLO_ATTAINED)
    if said is None:
        return Memory()
    return Memory(Verdict(said.status, _reason(said), said.message))


def _reason(condition: Condition) -> Reason:
    """A newer operator may have known more reasons."""
    known = condition.reason in set(Reason)
    return Reason(condition.reason) if known else Reason.PENDING


def status_of(
    plan: ServicePlan,
    nodes: Mapping[str, Node],
    memory: Memory,
    now_s: float,
    now: str,
    scheme: str = "http",
) -> tuple[LLMServiceStatus, Memory]:
    """The status to be written, if it differs, and what to remember."""
    service, replicas = plan.service, seen(plan, nodes)
    # The words of the day a replica was placed are found in its placement later.
    placements = [_placement(s) for s in replicas]
    if not service.status.conditions:
        fresh = conditions(first_sight(service.is_ls), (), service.generation, now)
        return LLMServiceStatus(port=plan.port, conditions=fresh, placements=placements), memory
    measured, memory, slo, best_effort = _measured(plan, replicas, memory, now_s)
    found = findings(plan, replicas, measured)
    return LLMServiceStatus(
        observed_generation=service.generation,
        conditions=conditions(found, service.status.conditions, service.generation, now),
        placements=placements,
        refusals=_refusals(plan),
        slo=slo,
        best_effort=best_effort,
        **_counts(plan, scheme),
    ), memory


def _counts(plan: ServicePlan, scheme: str) -> dict[str, Any]:
    """Where it is found, and how many replicas there are of how many."""
    service, ready = plan.service, sum(r.ready for r in plan.staying)
    return {
        "url": f"{scheme}://{service.name}.{service.namespace}.svc/v1" if plan.port else "",
        "port": plan.port,
        "replicas": len(plan.staying),
        "ready_replicas": ready,
        "ready_summary": f"{ready}/{service.wanted}",
        "node_names": _names([r.node for r in plan.replicas]),
        "selector": AGENT_SELECTOR,
    }


def _names(nodes: Sequence[str]) -> str:
    """For a column: the first few."""
    few = sorted(set(nodes))[:MAX_NAMED]
    more = len(set(nodes)) - len(few)
    return ", ".join([*few, *([f"and {more} more"] if more else [])])[:253]


def _refusals(plan: ServicePlan) -> list[Refusal]:
    return [
        Refusal(node=r.node, device=r.device, reason=r.reason, message=r.message[:1024])
        for r in plan.refusals[:MAX_REFUSALS]
    ]


def _placement(replica: Seen) -> PlacementStatus:
    report = replica.report
    percent = report.progress_percent if report else None
    return PlacementStatus(
        node=replica.replica.node,
        device=replica.replica.device,
        state="Draining" if replica.replica.phase is Phase.DRAINS else replica.state,
        reason=report.reason if report else "",
        message=report.message if report else "",
        progress_percent=None if percent is None else percent // 10 * 10,
        why=replica.replica.why,
    )


_Measures = tuple[dict[ConditionType, Finding], Memory, SloStatus | None, BestEffortStatus | None]


def _measured(
    plan: ServicePlan, replicas: Sequence[Seen], memory: Memory, now_s: float
) -> _Measures:
    """SLOAttained of LS, Throttled of BE, with their figures."""
    spec = plan.service.spec
    if spec is None:
        return _as_before(plan.service, memory)
    if spec.slo is not None:
        return _measured_slo(spec.slo, replicas, memory, now_s)
    fresh = [s for s in replicas if s.node.reporting]
    windows = [s.report.be for s in fresh if s.report and s.report.be]
    said = _said(plan.service.status.conditions, ConditionType.THROTTLED)
    before = said.status if said else ConditionStatus.UNKNOWN
    if replicas:
        found = throttling(windows, before, bool(fresh))
    else:
        found = Finding(ConditionStatus.UNKNOWN, Reason.PENDING, "no replica has a device")
    return {ConditionType.THROTTLED: found}, Memory(), None, _best_effort(windows)


def _measured_slo(slo: Slo, replicas: Sequence[Seen], memory: Memory, now_s: float) -> _Measures:
    fresh = [s for s in replicas if s.node.reporting]
    sums = totals([Measured(s.node.name, s.report.ls) for s in fresh if s.report and s.report.ls])
    # Without a replica nothing is stale: there is nobody to send requests to.
    now = finding(sums, slo, reporting=bool(fresh) or not replicas)
    verdict = with_hysteresis(memory.slo, now, slo, now_s)
    told = Finding(verdict.status, verdict.reason, verdict.message)
    known = now.status is not ConditionStatus.UNKNOWN
    return {ConditionType.SLO_ATTAINED: told}, Memory(verdict), _slo(slo, sums, known), None


def _slo(slo: Slo, sums: Totals, known: bool) -> SloStatus:
    share = f"{sums.attained_percent:.1f}" if known else "-"
    finished = 100 * sums.attained / sums.finished if sums.finished else 0.0
    refused = 100 * (sums.refused + sums.failed) / sums.offered if sums.offered else 0.0
    return SloStatus(
        summary=f"{share}/{slo.objective_percent}",
        window=slo.window,
        samples=two_digits(sums.offered),
        attained_percent=share if known else "",
        attained_finished_percent=f"{finished:.1f}" if known and sums.finished else "",
        refused_percent=f"{refused:.1f}" if known else "",
        ttft_ms_p50=_rounded(sums.ttft_ms_p50),
        ttft_ms_p99=_rounded(sums.ttft_ms_p99),
        tpot_ms_p50=_rounded(sums.tpot_ms_p50),
        tpot_ms_p99=_rounded(sums.tpot_ms_p99),
        worst_node=sums.worst_node,
    )


def _rounded(value: int | None) -> int | None:
    return None if value is None else two_digits(value)


def _best_effort(windows: Sequence[BeWindow]) -> BestEffortStatus:
    finishes = [w.predicted_finish for w in windows if w.predicted_finish]
    return BestEffortStatus(
        tokens_per_minute=two_digits(sum(w.tokens_per_minute for w in windows)),
        queued=two_digits(sum(w.queued for w in windows)),
        running=two_digits(sum(w.running for w in windows)),
        throttled_percent=round_to(throttled_percent(windows), 5),
        throttled_by=throttlers(windows),
        # 2026-01-01T10:20:30Z to the minute; the last replica's is the service's.
        predicted_finish=f"{max(finishes)[:16]}:00Z" if finishes else None,
    )


def _as_before(service: Service, memory: Memory) -> _Measures:
    """Of an object that does not validate: which class it has is not known."""
    kept = {
        ConditionType(c.type): Finding(c.status, _reason(c), c.message)
        for c in service.status.conditions
        if c.type in (ConditionType.SLO_ATTAINED, ConditionType.THROTTLED)
    }
    return kept, memory, service.status.slo, service.status.best_effort


def _said(before: Sequence[Condition], kind: ConditionType) -> Condition | None:
    return next((c for c in before if c.type == kind), None)


def only_figures_differ(before: LLMServiceStatus, after: LLMServiceStatus) -> bool:
    """No state, reason or place: such a change may wait."""
    return _without_figures(before) == _without_figures(after)


def _without_figures(status: LLMServiceStatus) -> LLMServiceStatus:
    silent = [c.model_copy(update={"message": ""}) for c in status.conditions]
    placements = [
        p.model_copy(update={"progress_percent": None, "message": ""}) for p in status.placements
    ]
    return status.model_copy(
        update={
            "conditions": silent,
            "slo": None,
            "best_effort": None,
            "placements": placements,
            "refusals": [],
        }
    )
