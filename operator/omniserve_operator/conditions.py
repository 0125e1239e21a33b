"""The conditions of one service from its plan and its nodes' reports. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from omniserve_crds.conditions import ConditionStatus, ConditionType, Reason
from omniserve_crds.servingnode import RunReason, ServiceReport, ServiceRunState
from omniserve_crds.status import Condition
from omniserve_operator.attainment import Finding
from omniserve_operator.placement.result import Phase, Replica, ServicePlan
from omniserve_operator.tenancy import ACCEPTED
from omniserve_operator.world import Node

TRUE, FALSE, UNKNOWN = ConditionStatus.TRUE, ConditionStatus.FALSE, ConditionStatus.UNKNOWN
_UNPLACED = Finding(UNKNOWN, Reason.PENDING, "no replica has a device")
MAX_MESSAGE = 4096
# Reasons of replicas that have failed, as the service's own; of several the first is told.
_FAILURES = {
    RunReason.LOAD_FAILED: Reason.LOAD_FAILED,
    RunReason.ENGINE_FAILED: Reason.ENGINE_FAILED,
    RunReason.REFUSED: Reason.REFUSED,
    RunReason.PORT_UNAVAILABLE: Reason.PORT_UNAVAILABLE,
}
# What an agent waits for once the engine has the weights.
_LOADED_BUT = (RunReason.PROBING, RunReason.KEYS_MISSING, RunReason.PORT_UNAVAILABLE)


@dataclass(frozen=True)
class Seen:
    """A replica with what its node says of it."""

    replica: Replica
    node: Node
    report: ServiceReport | None

    @property
    def state(self) -> ServiceRunState:
        return self.report.state if self.report else ServiceRunState.PENDING

    @property
    def answers(self) -> bool:
        return self.replica.ready and self.replica.phase is not Phase.DRAINS

    @property
    def reason(self) -> str:
        return self.report.reason if self.report else ""

    @property
    def in_memory(self) -> bool:
        draining = self.state is ServiceRunState.DRAINING
        return self.replica.ready or draining or self.reason in _LOADED_BUT


def seen(plan: ServicePlan, nodes: Mapping[str, Node]) -> list[Seen]:
    """The service's replicas on nodes that exist."""
    return [
        Seen(replica, nodes[replica.node], nodes[replica.node].report(plan.service.uid))
        for replica in plan.replicas
        if replica.node in nodes
    ]


def findings(
    plan: ServicePlan, replicas: Sequence[Seen], measured: Mapping[ConditionType, Finding]
) -> dict[ConditionType, Finding]:
    """Every condition that applies, in the order they are shown."""
    found = {
        ConditionType.READY: _ready(plan, replicas),
        ConditionType.ACCEPTED: _accepted(plan),
        ConditionType.SCHEDULED: _scheduled(plan),
        ConditionType.MODEL_LOADED: _model_loaded(plan, replicas),
        ConditionType.SERVING: _serving(plan, replicas),
        ConditionType.PROGRESSING: _progressing(plan),
    }
    return found | dict(measured) | {ConditionType.NODES_REPORTING: _reporting(replicas)}


def _accepted(plan: ServicePlan) -> Finding:
    status = TRUE if plan.accepted is ACCEPTED else FALSE
    return Finding(status, plan.accepted.reason, plan.accepted.message)


def _scheduled(plan: ServicePlan) -> Finding:
    reason = plan.scheduled.reason
    status = {Reason.PLACED: TRUE, Reason.PENDING: UNKNOWN}.get(reason, FALSE)
    return Finding(status, reason, plan.scheduled.message)


def _progressing(plan: ServicePlan) -> Finding:
    status = FALSE if plan.progressing.reason is Reason.COMPLETE else TRUE
    return Finding(status, plan.progressing.reason, plan.progressing.message)


def _ready(plan: ServicePlan, replicas: Sequence[Seen]) -> Finding:
    if plan.accepted is not ACCEPTED:
        return Finding(FALSE, plan.accepted.reason, plan.accepted.message)
    if plan.scheduled.reason is not Reason.PLACED:
        status = UNKNOWN if plan.scheduled.reason is Reason.PENDING else FALSE
        return Finding(status, plan.scheduled.reason, plan.scheduled.message)
    answering = _answering(replicas)
    words = f"{answering} of {plan.allowed} replicas answer"
    if answering >= plan.allowed:
        return Finding(TRUE, Reason.REPLICAS_READY, words)
    cause = _failure(_staying(replicas)) or _model_loaded(plan, replicas)
    if cause.status is FALSE:
        return Finding(FALSE, cause.reason, f"{words}; {cause.message}")
    return Finding(FALSE, Reason.REPLICAS_UNAVAILABLE, _with_words(words, replicas))


def _answering(replicas: Sequence[Seen]) -> int:
    """Replicas of this generation that answer."""
    return sum(s.replica.phase is Phase.STAYS and s.replica.ready for s in replicas)


def _staying(replicas: Sequence[Seen]) -> list[Seen]:
    return [s for s in replicas if s.replica.phase is Phase.STAYS]


def _failure(replicas: Sequence[Seen]) -> Finding | None:
    """What is wrong with replicas that have failed."""
    failed = [s for s in replicas if s.state is ServiceRunState.FAILED]
    if not failed:
        return None
    told = {s.reason for s in failed}
    known = (ours for theirs, ours in _FAILURES.items() if theirs in told)
    # Newer agents may know more reasons; the message has them.
    return Finding(FALSE, next(known, Reason.REPLICAS_UNAVAILABLE), _with_words("", failed))


def _model_loaded(plan: ServicePlan, replicas: Sequence[Seen]) -> Finding:
    staying = _staying(replicas)
    if not staying:
        return _paused_or(plan, _UNPLACED)
    missing = [s for s in staying if not s.in_memory]
    if failure := _failure(missing):
        return failure
    if missing:
        return Finding(FALSE, Reason.LOADING, "; ".join(_progress(s) for s in missing[:5]))
    return Finding(TRUE, Reason.LOADED, f"on {', '.join(s.node.name for s in staying[:5])}")


def _progress(replica: Seen) -> str:
    report = replica.report
    percent = report.progress_percent if report else None
    # In steps of ten: a message that changes with each percent is a write with each percent.
    done = "" if percent is None else f" {percent // 10 * 10} %"
    words = f": {report.message}" if report and report.message and percent is None else ""
    return f"{replica.node.name} {replica.state.value.lower()}{done}{words}"


def _serving(plan: ServicePlan, replicas: Sequence[Seen]) -> Finding:
    answering = sum(s.answers for s in replicas)
    if answering:
        return Finding(TRUE, Reason.REPLICAS_READY, f"{answering} replicas answer")
    if not replicas:
        return _paused_or(plan, Finding(FALSE, Reason.REPLICAS_UNAVAILABLE, "no replica"))
    return Finding(FALSE, Reason.REPLICAS_UNAVAILABLE, _with_words("no replica answers", replicas))


def _paused_or(plan: ServicePlan, otherwise: Finding) -> Finding:
    if plan.scheduled.reason is Reason.PAUSED:
        return Finding(FALSE, Reason.PAUSED, plan.scheduled.message)
    return otherwise


def _reporting(replicas: Sequence[Seen]) -> Finding:
    if not replicas:
        return _UNPLACED
    silent = sorted(s.node.name for s in replicas if not s.node.reporting)
    if not silent:
        words = f"{len({s.node.name for s in replicas})} nodes report"
        return Finding(TRUE, Reason.REPORTING, words)
    words = f"no report for 60 s from {', '.join(silent[:10])}"
    return Finding(FALSE, Reason.HEARTBEAT_STALE, words)


def _with_words(head: str, replicas: Sequence[Seen]) -> str:
    """What agents say of replicas that do not answer."""
    said = [
        f"{s.node.name}: {s.report.reason or s.state.value}"
        + (f", {s.report.message}" if s.report.message else "")
        for s in replicas
        if s.report is not None and not s.replica.ready
    ]
    return "; ".join([head, *said[:5]] if head else said[:5])


def conditions(
    found: Mapping[ConditionType, Finding],
    before: Sequence[Condition],
    generation: int,
    now: str,
) -> list[Condition]:
    """metav1 conditions; `lastTransitionTime` moves only when a status changes."""
    old = {condition.type: condition for condition in before}
    return [
        Condition(
            type=kind,
            status=finding.status,
            observed_generation=generation,
            last_transition_time=_since(old.get(kind), finding.status, now),
            reason=finding.reason,
            message=finding.message[:MAX_MESSAGE],
        )
        for kind, finding in found.items()
    ]


def _since(before: Condition | None, status: ConditionStatus, now: str) -> str:
    return before.last_transition_time if before and before.status == status else now


def first_sight(is_ls: bool) -> dict[ConditionType, Finding]:
    """Everything Unknown, so that `kubectl wait` has something to wait for."""
    other = ConditionType.THROTTLED if is_ls else ConditionType.SLO_ATTAINED
    pending = Finding(UNKNOWN, Reason.PENDING, "not looked at yet")
    return {kind: pending for kind in ConditionType if kind is not other}
