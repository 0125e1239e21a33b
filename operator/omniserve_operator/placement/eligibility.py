"""May a service's replica start, or stay, on a node? Pure."""

from __future__ import annotations

from collections.abc import Iterable

from omniserve_crds.llmservice import Spec
from omniserve_crds.placement import TaintEffect, Toleration, TolerationOperator
from omniserve_crds.uris import VolumeUri
from omniserve_operator.world import Node, Taint

# Autoscalers put these on a node they are about to remove.
TO_BE_DELETED = ("ToBeDeletedByClusterAutoscaler", "karpenter.sh/disrupted")


def tolerates(tolerations: Iterable[Toleration], taint: Taint) -> bool:
    """As the scheduler decides it."""
    return any(_matches(toleration, taint) for toleration in tolerations)


def _matches(toleration: Toleration, taint: Taint) -> bool:
    if toleration.effect is not None and toleration.effect != taint.effect:
        return False
    if toleration.key is not None and toleration.key != taint.key:
        return False
    if toleration.operator is TolerationOperator.EXISTS:
        return True
    return (toleration.value or "") == taint.value


def mismatch(spec: Spec, node: Node) -> str | None:
    """Why the node does not match what the service asks for; None where it does."""
    placement = spec.placement
    for key, value in sorted(placement.node_selector.items()):
        if node.labels.get(key) != value:
            return f"label {key} is {node.labels.get(key, 'absent')!s}, wanted {value}"
    source = spec.model.source
    if isinstance(source, VolumeUri) and source.volume not in node.status.model_volumes:
        return f"its agent has no model volume {source.volume}"
    return None


def leaving(spec: Spec, node: Node) -> str | None:
    """Why replicas should leave the node; None where they may stay.

    An agent that restarts is no reason: only 60 s of silence are.
    """
    if node.cordoned:
        return "it is cordoned"
    if node.spec is not None and node.spec.drain:
        return "its agent is being upgraded"
    for taint in node.taints:
        if taint.key in TO_BE_DELETED:
            return f"taint {taint.key}: it is about to be deleted"
        if taint.effect == TaintEffect.NO_EXECUTE and not _stays(spec, taint):
            return f"taint {taint.key}:{taint.effect}"
    if not node.reporting:
        return "its agent does not report"
    return None


def _stays(spec: Spec, taint: Taint) -> bool:
    """A bounded toleration is one to leave under: the replacement has that time to come up."""
    lasting = [t for t in spec.placement.tolerations if t.toleration_seconds is None]
    return tolerates(lasting, taint)


def closed_to_new(spec: Spec, node: Node) -> str | None:
    """Why no new replica may start on the node; None where one may."""
    if node.agent is None or node.agent.deleting:
        return "no agent runs on it"
    if reason := leaving(spec, node):
        return reason
    for taint in node.taints:
        blocks = taint.effect in (TaintEffect.NO_SCHEDULE, TaintEffect.NO_EXECUTE)
        if blocks and not tolerates(spec.placement.tolerations, taint):
            return f"taint {taint.key}:{taint.effect}"
    if not node.status.devices:
        return "its agent reports no device"
    return None
