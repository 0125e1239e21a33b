"""One Event for each condition whose status changed. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from omniserve_crds.conditions import ConditionStatus, ConditionType, Reason
from omniserve_crds.group import API_VERSION, LLM_SERVICE_KIND
from omniserve_crds.status import Condition
from omniserve_operator.world import Service

COMPONENT = "omniserve-operator"
# What every start and every pause brings.
_EXPECTED = (Reason.PAUSED, Reason.LOADING, Reason.REPLICAS_UNAVAILABLE)
# Where False is what somebody should look at; a replica that is lost shows as Ready.
_WARNING = {
    ConditionType.READY: ConditionStatus.FALSE,
    ConditionType.ACCEPTED: ConditionStatus.FALSE,
    ConditionType.SCHEDULED: ConditionStatus.FALSE,
    ConditionType.MODEL_LOADED: ConditionStatus.FALSE,
    ConditionType.SLO_ATTAINED: ConditionStatus.FALSE,
    ConditionType.NODES_REPORTING: ConditionStatus.FALSE,
}
_GOOD_NEWS = (ConditionType.SCHEDULED, ConditionType.READY, ConditionType.SLO_ATTAINED)
_MAX_MESSAGE = 1024


def transitions(before: Sequence[Condition], after: Sequence[Condition]) -> list[Condition]:
    """Conditions that were there with another status.

    First sight is no transition, and what is found then is told only where somebody would want to
    know: that it is placed, answers or attains, or what is wrong.
    """
    old = {condition.type: condition for condition in before}
    changed = [c for c in after if c.type in old and old[c.type].status != c.status]
    return [c for c in changed if old[c.type].reason != Reason.PENDING or _is_news(c)]


def _is_news(condition: Condition) -> bool:
    good = condition.type in _GOOD_NEWS and condition.status is ConditionStatus.TRUE
    return good or _type(condition) == "Warning"


def event(service: Service, condition: Condition, now: str) -> dict[str, Any]:
    """A core/v1 Event; its name is the transition's own, so that a repeat is refused as such."""
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"namespace": service.namespace, "name": _name(service, condition)},
        "involvedObject": {
            "apiVersion": API_VERSION,
            "kind": LLM_SERVICE_KIND,
            "namespace": service.namespace,
            "name": service.name,
            "uid": service.uid,
            "resourceVersion": service.resource_version,
        },
        "type": _type(condition),
        "reason": condition.reason,
        "message": f"{condition.type} is {condition.status}: {condition.message}"[:_MAX_MESSAGE],
        "source": {"component": COMPONENT},
        "reportingComponent": COMPONENT,
        "reportingInstance": COMPONENT,
        "action": str(condition.type),
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }


def _type(condition: Condition) -> str:
    warns = _WARNING.get(ConditionType(condition.type)) == condition.status
    return "Warning" if warns and condition.reason not in _EXPECTED else "Normal"


def _name(service: Service, condition: Condition) -> str:
    parts = (service.uid, service.resource_version, condition.type, condition.status)
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()[:16]
    return f"{service.name}.{digest}"
