"""The node's status: gathered, paced and written. What it says is decided in pure modules."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import structlog

from omniserve_agent.engine.messages import ServiceClass, Stats
from omniserve_agent.http.tally import Tally
from omniserve_agent.node.cluster.api import ApiError, NodeApi, NodeObject
from omniserve_agent.node.cluster.door import ServiceDoor
from omniserve_agent.node.cluster.engine_unit import EngineUnit
from omniserve_agent.node.cluster.executor import Executor
from omniserve_agent.node.cluster.figures import (
    BeFacts,
    YieldShare,
    be_window,
    error_budget,
    ls_window,
    rfc3339,
    tokens_left,
)
from omniserve_agent.node.cluster.pacing import Pacing
from omniserve_agent.node.cluster.row_costs import Counters, RowLog
from omniserve_agent.node.cluster.run_state import RunState
from omniserve_agent.serving import ServedService
from omniserve_crds.servingnode import (
    MAX_ASSIGNMENTS,
    BeWindow,
    DeviceReport,
    EngineReport,
    LsWindow,
    ServiceAssignment,
    ServiceReport,
    ServiceRunState,
    ServingNodeStatus,
)
from omniserve_crds.status import Condition
from omniserve_crds.version import VERSION

TICK_S = 0.25


@dataclass(frozen=True)
class NodeFacts:
    """What does not change while the agent runs."""

    address: str
    admin_port: int
    template: str = ""
    model_volumes: tuple[str, ...] = ()


@dataclass
class _EngineSamples:
    """What is remembered of one engine between reports."""

    unit: EngineUnit
    yielding: YieldShare = field(default_factory=YieldShare)
    rows: RowLog = field(default_factory=RowLog)
    iterations: int = 0
    be_work: bool = False  # at the last sample
    iteration_micros: int | None = None  # of the last time that anything ran


@dataclass
class Reporter:
    """Run `run` as a task. `seen` gets the object that a write returned: a resync for nothing."""

    api: NodeApi
    executor: Executor
    facts: NodeFacts
    seen: Callable[[NodeObject | None], None]
    clock: Callable[[], float]
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    pacing: Pacing = field(default_factory=Pacing)
    observed_generation: int = 0  # of the spec in force; 0: none was seen, nothing is written
    conditions: tuple[Condition, ...] = ()
    _samples: dict[int, _EngineSamples] = field(default_factory=dict)

    async def run(self) -> None:
        """Probe, sample and write until cancelled."""
        while True:
            for door in self.executor.doors:
                door.probe()
            self._sample()
            await self.write_if_due()
            await asyncio.sleep(TICK_S)

    async def write_if_due(self) -> None:
        """Write when something has changed or figures are old."""
        services, now_s = self.executor.services(), self.clock()
        edges = self._edges(services)
        if not self.observed_generation or not self.pacing.due(now_s, edges):
            return
        status = self.status(services)
        try:
            answer = await self.api.patch_status(merge_patch(status))
        except ApiError as error:
            structlog.get_logger().warning("status not written", reason=str(error))
            self.pacing.failed(self.clock())
            return
        if answer is None:
            self.pacing.failed(self.clock())
        else:
            self.pacing.written(self.clock(), edges)
        self.seen(answer)

    def _edges(self, services: list[tuple[ServiceAssignment, RunState]]) -> object:
        return (
            self.observed_generation,
            self.conditions,
            tuple((unit.identity, unit.facts.ready) for unit in self.executor.units),
            tuple((s.uid, s.generation, state.edge) for s, state in services),
        )

    # ---- the status ----------------------------------------------------------------------------

    def status(self, services: list[tuple[ServiceAssignment, RunState]]) -> ServingNodeStatus:
        """Everything there is to say now."""
        shares, units = self.executor.shares, self.executor.units
        serving = sum(state.state is ServiceRunState.READY for _, state in services)
        return ServingNodeStatus(
            heartbeat_time=rfc3339(self.now()),
            observed_generation=self.observed_generation,
            agent_version=VERSION,
            agent_template=self.facts.template,
            address=self.facts.address,
            admin_port=self.facts.admin_port,
            devices=[
                DeviceReport(id=device.id, kind=device.kind, memory_bytes=device.memory_bytes)
                for device in shares.devices
            ],
            host_cores=shares.room.host_cores,
            host_kv_bytes=shares.room.host_kv_bytes,
            model_volumes=list(self.facts.model_volumes),
            engines=[self._engine(unit) for unit in units],
            services=[self._service(*entry) for entry in services[:MAX_ASSIGNMENTS]],
            engine_summary=f"{sum(u.facts.ready for u in units)}/{len(shares.devices)}",
            ready_summary=f"{serving}/{len(services)}",
            conditions=list(self.conditions),
        )

    def _engine(self, unit: EngineUnit) -> EngineReport:
        stats, held_bytes = unit.client.stats, unit.identity.host_kv_bytes
        samples = self._samples.get(id(unit)) or _EngineSamples(unit)
        costs, latest = samples.rows.costs, samples.rows.latest
        return EngineReport(
            device=unit.identity.device,
            key=unit.identity.key,
            host_kv_bytes=held_bytes,
            host_kv_free_bytes=_free_bytes(stats, held_bytes),
            weights_bytes=unit.weights_bytes,
            piggybacked_rows=stats.joins if stats else 0,
            ls_rows=round(latest.ls_rows) if latest else 0,
            iteration_micros=samples.iteration_micros,
            row_micros=costs.ls_row_us,
            be_iteration_micros=costs.be_us,
            admission_queued=stats.admission_queued if stats else 0,
            error_budget=error_budget(stats),
        )

    def _service(self, service: ServiceAssignment, state: RunState) -> ServiceReport:
        door = self.executor.door_of(service.uid)
        ls = be = None
        if door is not None and door.service is not None:
            ls, be = self._ls(door.service), self._be(door, door.service)
        return ServiceReport(
            uid=service.uid,
            observed_generation=service.generation,
            state=state.state,
            reason=state.reason,
            message=state.message,
            progress_percent=state.progress_percent,
            ls=ls,
            be=be,
        )

    def _ls(self, service: ServedService) -> LsWindow | None:
        if service.service_class is not ServiceClass.LS or service.slo is None:
            return None
        tally, now_s = self._tally(service), self.clock()
        burn = tally.error_budget_burn(service.slo, now_s)
        return ls_window(*tally.window(now_s, service.slo.window_s), burn)

    def _be(self, door: ServiceDoor, service: ServedService) -> BeWindow | None:
        if service.service_class is not ServiceClass.BE:
            return None
        tally, samples = self._tally(service), self._samples.get(id(door.unit))
        percent = samples.yielding.percent(self.clock()) if samples else 0
        facts = BeFacts(
            tokens_per_minute=tally.tokens_per_minute(self.clock()),
            queued=tally.waiting,
            running=tally.running,
            throttled_percent=percent,
            neighbours=self._neighbours(door.unit),
            tokens_left=tokens_left(
                door.unit.client.open_requests(service.key), tally.mean_output_tokens
            ),
        )
        return be_window(facts, self.now())

    def _neighbours(self, unit: EngineUnit) -> tuple[str, ...]:
        """LS services of the engine that have had work in the last minute."""
        return tuple(
            service.key
            for service in self._services_on(unit)
            if service.service_class is ServiceClass.LS and self._busy(service)
        )

    def _busy(self, service: ServedService) -> bool:
        tally = self._tally(service)
        return tally.waiting + tally.running > 0 or tally.tokens_per_minute(self.clock()) > 0

    def _be_work(self, unit: EngineUnit) -> bool:
        """Whether a BE request waits or runs now."""
        tallies = [
            self._tally(service)
            for service in self._services_on(unit)
            if service.service_class is ServiceClass.BE
        ]
        return any(tally.waiting + tally.running > 0 for tally in tallies)

    def _services_on(self, unit: EngineUnit) -> list[ServedService]:
        return [d.service for d in self.executor.doors if d.unit is unit and d.service is not None]

    def _tally(self, service: ServedService) -> Tally:
        return self.executor.http.books.tally(service)

    # ---- samples -------------------------------------------------------------------------------

    def _sample(self) -> None:
        """Take the engines' counters, and forget engines that are gone."""
        units = {id(unit): unit for unit in self.executor.units}
        self._samples = {
            key: self._samples.get(key) or _EngineSamples(unit) for key, unit in units.items()
        }
        for samples in self._samples.values():
            if samples.unit.client.stats is not None:
                self._take(samples, samples.unit.client.stats)

    def _take(self, samples: _EngineSamples, stats: Stats) -> None:
        if stats.iterations == samples.iterations:
            return
        had_work, samples.be_work = samples.be_work, self._be_work(samples.unit)
        be_work = had_work or samples.be_work
        samples.yielding.add(self.clock(), stats.iterations, stats.sweeps, be_work=be_work)
        samples.rows.add(_counters(stats), samples.unit.layers, stats.iteration_ms * 1e3)
        samples.iterations = stats.iterations
        if stats.iteration_ms:
            samples.iteration_micros = round(stats.iteration_ms * 1e3)


def _counters(stats: Stats) -> Counters:
    device, host = stats.device_attention_rows, stats.host_attention_rows
    be_row_layers = device.get(ServiceClass.BE, 0) + host.get(ServiceClass.BE, 0)
    return Counters(stats.iterations, device.get(ServiceClass.LS, 0), be_row_layers)


def _free_bytes(stats: Stats | None, held_bytes: int) -> int:
    """Host KV that no request has; all of it before the first figures."""
    if stats is None or not stats.host_kv_blocks:
        return held_bytes
    free_blocks = stats.host_kv_blocks - stats.host_kv_blocks_used
    return held_bytes * free_blocks // stats.host_kv_blocks


def merge_patch(status: ServingNodeStatus) -> dict[str, Any]:
    """The status as a JSON merge patch: null at the top takes a field away, lists are replaced
    whole. Empty texts are left out, since a 1.20 server reads them as null."""
    fields = status.model_dump(mode="json", by_alias=True)
    return {name: None if value == "" else _without_empty(value) for name, value in fields.items()}


def _without_empty(value: Any) -> Any:  # noqa: ANN401 - JSON
    if isinstance(value, dict):
        return {k: _without_empty(v) for k, v in value.items() if v is not None and v != ""}
    if isinstance(value, list):
        return [_without_empty(item) for item in value]
    return value
