"""Services and their endpoints, made and kept as the plan says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omniserve_crds.conditions import Reason
from omniserve_operator.api import ENDPOINT_SLICES, ENDPOINTS, SERVICES, ApiError, Kind, Object
from omniserve_operator.endpoints import (
    addresses,
    endpoint_slice_manifest,
    endpoints_manifest,
    service_manifest,
)
from omniserve_operator.placement.result import ServicePlan
from omniserve_operator.store import Store
from omniserve_operator.world import Node, Service, Verdict
from omniserve_operator.writer import Writer


class Children:
    """What an LLMService owns in its namespace."""

    def __init__(self, store: Store, writer: Writer, slices: bool, tls: bool) -> None:
        self._store = store
        self._writer = writer
        self._slices = slices  # the server has discovery.k8s.io/v1
        self._tls = tls

    async def carry_out(
        self,
        plan: ServicePlan,
        nodes: Mapping[str, Node],
        closing: frozenset[str],
        now_s: float,
    ) -> bool:
        """The Service and the addresses of replicas that answer.

        False where the name belongs to somebody else: nobody tells when it becomes free.
        """
        service, port = plan.service, plan.port
        if port is None or self._never_valid(plan):
            return True
        found, tls = addresses(plan, nodes, closing), self._tls
        if self._slices:
            kind, manifest = ENDPOINT_SLICES, endpoint_slice_manifest(service, port, found, tls=tls)
        else:
            kind, manifest = ENDPOINTS, endpoints_manifest(service, port, found, tls=tls)
        wanted = service_manifest(service, port, tls=tls)
        fault = await self._ensure(SERVICES, service, wanted, now_s)
        fault = fault or await self._ensure(kind, service, manifest, now_s)
        self._note(service, fault)
        there = {node for _, node in found}
        gone = {replica.node for replica in plan.replicas} - there
        self._store.note_addresses(service.uid, gone, now_s)
        return fault is None

    def _never_valid(self, plan: ServicePlan) -> bool:
        """Nothing of it runs or was made: on servers without CEL not even its name may be one."""
        service = plan.service
        made = self._store.child(SERVICES, service.namespace, service.name)
        return service.spec is None and not plan.replicas and made is None

    def _note(self, service: Service, fault: Verdict | None) -> None:
        if fault is not None:
            self._store.faults[service.uid] = fault
        elif self._conflicts(service):
            del self._store.faults[service.uid]

    async def _ensure(
        self, kind: Kind, service: Service, wanted: Object, now_s: float
    ) -> Verdict | None:
        """Create, correct or leave alone; a verdict where the name belongs to somebody else."""
        current = self._store.child(kind, service.namespace, service.name)
        if current is None:
            if self._conflicts(service) and not await self._free(kind, service):
                return _conflict(kind, service)
            return await self._create(kind, service, wanted, now_s)
        if not _owned(current, service):
            return _conflict(kind, service)
        if _holds(current, wanted):
            return None
        await self._correct(kind, service, current, wanted, now_s)
        return None

    def _conflicts(self, service: Service) -> bool:
        fault = self._store.faults.get(service.uid)
        return fault is not None and fault.reason is Reason.NAME_CONFLICT

    async def _free(self, kind: Kind, service: Service) -> bool:
        """Looked at, not tried: a try is a write."""
        try:
            current = await self._writer.read(kind, service.namespace, service.name)
        except ApiError as error:
            if error.not_found:
                return True
            raise
        return _owned(current, service)

    async def _create(
        self, kind: Kind, service: Service, wanted: Object, now_s: float
    ) -> Verdict | None:
        try:
            made = await self._writer.create(kind, service.namespace, wanted)
        except ApiError as error:
            if not error.conflict:
                raise
            # It is there without our label, or our watch is behind: an owner's patch tells.
            return await self._adopt(kind, service, wanted, now_s)
        self._store.put(kind, made, now_s)
        return None

    async def _adopt(
        self, kind: Kind, service: Service, wanted: Object, now_s: float
    ) -> Verdict | None:
        current = await self._writer.read(kind, service.namespace, service.name)
        if not _owned(current, service):
            return _conflict(kind, service)
        await self._correct(kind, service, current, wanted, now_s)
        return None

    async def _correct(
        self, kind: Kind, service: Service, current: Object, wanted: Object, now_s: float
    ) -> None:
        metadata = wanted["metadata"] | {
            "resourceVersion": current["metadata"]["resourceVersion"],
        }
        body = wanted | {"metadata": metadata}
        written = await self._writer.patch(kind, service.namespace, service.name, body)
        self._store.put(kind, written, now_s)


def _owned(current: Object, service: Service) -> bool:
    owners = current["metadata"].get("ownerReferences") or []
    return any(owner["uid"] == service.uid for owner in owners)


def _conflict(kind: Kind, service: Service) -> Verdict:
    return Verdict(
        Reason.NAME_CONFLICT,
        f"metadata.name: is {service.name!r}, and {kind.plural}/{service.name} in namespace "
        f"{service.namespace} belongs to something else; rename one of them",
    )


def _holds(current: Any, wanted: Any) -> bool:  # noqa: ANN401  (any JSON)
    """Everything wanted is there; what the server has added does not matter."""
    if isinstance(wanted, dict):
        return (
            isinstance(current, dict)
            and all(_holds(current.get(key), value) for key, value in wanted.items() if value != [])
            and all(not current.get(key) for key, value in wanted.items() if value == [])
        )
    if isinstance(wanted, list):
        return (
            isinstance(current, list)
            and len(current) == len(wanted)
            and all(map(_holds, current, wanted))
        )
    return bool(current == wanted)
