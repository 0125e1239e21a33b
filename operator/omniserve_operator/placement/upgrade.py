"""Agent upgrades: OnDelete, one node at a time, emptied first. Pure."""

from __future__ import annotations

from omniserve_crds.servingnode import RunReason, ServiceRunState
from omniserve_operator.settings import DRAIN_LIMIT_S
from omniserve_operator.world import AgentPod, Node, World


def outdated(node: Node, world: World) -> bool:
    """Its agent runs another pod template than its DaemonSet has now."""
    if node.agent is None:
        return False
    newest = world.newest_templates.get(node.agent.daemon_set)
    return newest is not None and node.agent.template != newest


def upgrading_node(world: World) -> str | None:
    """The node whose agent is next, or under way: a drained one, else one whose agent is not ready
    anyway, else the first by name.

    None while an upgraded agent is not ready: at most one is missing for an upgrade's sake.
    """
    nodes = sorted(world.nodes, key=lambda node: node.name)
    candidates = [node for node in nodes if node.spec is not None and outdated(node, world)]
    under_way = [node for node in candidates if node.spec is not None and node.spec.drain]
    if under_way:
        return under_way[0].name
    if any(_away(node) and not outdated(node, world) for node in nodes):
        return None
    return (
        min(candidates, key=lambda node: (not _away(node), node.name)).name if candidates else None
    )


def _away(node: Node) -> bool:
    """The ServingNode is there, a ready agent that may take something is not."""
    if node.spec is None or not node.ready:
        return False
    if node.agent is None:
        return node.spec.drain
    return node.agent.deleting or not node.agent.ready or node.spec.drain


def keeps_drain(node: Node, world: World) -> bool:
    """A drained node stays so until its agent is the new one."""
    if node.spec is None or not node.spec.drain:
        return False
    return node.agent is None or node.agent.deleting or outdated(node, world)


def to_restart(node: Node, world: World) -> AgentPod | None:
    """The agent's pod, once nothing runs there, or nobody can say, or it takes too long."""
    if node.spec is None or not node.spec.drain or not outdated(node, world):
        return None
    if node.agent is None or node.agent.deleting:
        return None
    waited = node.drained_s is not None and node.drained_s >= DRAIN_LIMIT_S
    return node.agent if waited or not node.reporting or _idle(node) else None


def _idle(node: Node) -> bool:
    if node.status.observed_generation < node.generation:
        return False
    busy = (ServiceRunState.READY, ServiceRunState.LOADING, ServiceRunState.DRAINING)
    return all(
        report.state not in busy or report.reason == RunReason.DRAINED
        for report in node.status.services
    )
