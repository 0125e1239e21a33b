"""Statuses and Events of LLMServices, written when something that matters has changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

from omniserve_crds.status import LLMServiceStatus
from omniserve_operator.api import EVENTS, LLM_SERVICES, ApiError, Object
from omniserve_operator.events import event, transitions
from omniserve_operator.placement.result import ServicePlan
from omniserve_operator.settings import FIGURES_BURST, FIGURES_EVERY_S, FIGURES_PER_S
from omniserve_operator.status import Memory, only_figures_differ, remembered, status_of
from omniserve_operator.store import Store
from omniserve_operator.world import Node, Service
from omniserve_operator.writer import Writer


class Statuses:
    """Remembers, by service uid, what a status depends on beside the world."""

    def __init__(self, store: Store, writer: Writer, *, tls: bool) -> None:
        self._store = store
        self._scheme = "https" if tls else "http"
        self._writer = writer
        self._memories: dict[str, Memory] = {}
        self._written_s: dict[str, float] = {}
        self._figures = FIGURES_BURST  # how many may be refreshed now
        self._counted_s: float | None = None

    def in_turn(self, plans: Iterable[ServicePlan], now_s: float) -> list[ServicePlan]:
        """The services in the order in which their figures are to be refreshed: oldest first."""
        elapsed_s = now_s - (self._counted_s if self._counted_s is not None else now_s)
        self._figures = min(FIGURES_BURST, self._figures + elapsed_s * FIGURES_PER_S)
        self._counted_s = now_s
        return sorted(plans, key=lambda plan: self._written_s.get(plan.service.uid, 0.0))

    def forget_others(self, uids: set[str]) -> None:
        """Services that are gone."""
        for memory in (self._memories, self._written_s):
            for uid in set(memory) - uids:
                del memory[uid]

    async def carry_out(self, plan: ServicePlan, nodes: Mapping[str, Node], now_s: float) -> bool:
        """Write the status if it differs; figures alone may wait.

        True where the same plan and reports would give nothing to write later either.
        """
        service = plan.service
        memory = self._memories.get(service.uid) or remembered(service)
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        status, self._memories[service.uid] = status_of(
            plan, nodes, memory, now_s, now, self._scheme
        )
        if status == service.status:
            return self._memories[service.uid].slo.contrary_since_s is None
        if self._may_wait(service, status, now_s):
            return False
        body = {"metadata": {"resourceVersion": service.resource_version}, "status": _body(status)}
        try:
            written = await self._writer.patch(
                LLM_SERVICES, service.namespace, service.name, body, "status"
            )
        except ApiError as error:
            if error.conflict or error.not_found:
                return False  # it has just been edited or deleted: its event brings it back
            raise
        self._written_s[service.uid] = now_s
        self._store.put(LLM_SERVICES, written, now_s)
        for condition in transitions(service.status.conditions, status.conditions):
            await self._tell(service, event(service, condition, now))
        return False

    def _may_wait(self, service: Service, status: LLMServiceStatus, now_s: float) -> bool:
        if not only_figures_differ(service.status, status):
            return False
        last = self._written_s.get(service.uid)
        if self._figures < 1 or (last is not None and now_s - last < FIGURES_EVERY_S):
            return True
        self._figures -= 1
        return False

    async def _tell(self, service: Service, body: Object) -> None:
        try:
            await self._writer.create(EVENTS, service.namespace, body)
        except ApiError as error:
            if not error.conflict:  # told already
                raise


def _body(status: LLMServiceStatus) -> Object:
    """As a merge patch: what is absent or empty is null, so that it goes.

    Lists replace each other whole and hold neither nulls nor empty strings, which older servers
    take for nulls.
    """
    whole: Object = status.model_dump(by_alias=True, mode="json")
    return {name: _patched(value) for name, value in whole.items()}


def _patched(value: object) -> object:
    if isinstance(value, dict):
        return {name: _patched(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_compact(item) for item in value]
    return None if value == "" else value


def _compact(item: object) -> object:
    if not isinstance(item, dict):
        return item
    return {name: value for name, value in item.items() if value not in (None, "")}
