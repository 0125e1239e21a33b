"""Services for which the last pass had nothing to write, and on what that rests.

With a thousand services nearly all of them are as they were two seconds ago; looking at them again
would make a change of one wait for all the others.
"""

from __future__ import annotations

from collections.abc import Mapping

from omniserve_operator.api import SERVICES, Kind, Object
from omniserve_operator.placement.result import ServicePlan
from omniserve_operator.store import Store
from omniserve_operator.world import Node

# Everything that a service's children and status are made of, apart from the time.
Grounds = tuple[object, ...]


class Settled:
    """By service uid: the grounds on which nothing had to be written."""

    def __init__(self, store: Store, endpoints: Kind) -> None:
        self._store = store
        self._endpoints = endpoints
        self._grounds: dict[str, Grounds] = {}

    def is_settled(
        self, plan: ServicePlan, nodes: Mapping[str, Node], closing: frozenset[str]
    ) -> bool:
        known = self._grounds.get(plan.service.uid)
        return known is not None and known == self._now(plan, nodes, closing)

    def note(self, plan: ServicePlan, nodes: Mapping[str, Node], closing: frozenset[str]) -> None:
        """Nothing had to be written, and nothing waits for time to pass."""
        self._grounds[plan.service.uid] = self._now(plan, nodes, closing)

    def forget_others(self, uids: set[str]) -> None:
        """Services that are gone."""
        for uid in set(self._grounds) - uids:
            del self._grounds[uid]

    def _now(
        self, plan: ServicePlan, nodes: Mapping[str, Node], closing: frozenset[str]
    ) -> Grounds:
        service = plan.service
        children = [
            _version(self._store.child(kind, service.namespace, service.name))
            for kind in (SERVICES, self._endpoints)
        ]
        # Reports that have not changed are the same objects: comparing them costs nothing.
        seen = [
            (node.status, node.reporting, node.ready, node.agent, node.name in closing)
            for replica in plan.replicas
            if (node := nodes.get(replica.node)) is not None
        ]
        return plan, tuple(seen), tuple(children)


def _version(child: Object | None) -> str | None:
    return None if child is None else child["metadata"]["resourceVersion"]
