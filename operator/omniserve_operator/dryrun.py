"""`plan --dry-run`: what placing some manifests would do in the live cluster."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from omniserve_crds.llmservice import LLMService
from omniserve_operator.api import KubernetesApi, connect
from omniserve_operator.freshness import Freshness
from omniserve_operator.metrics import Metrics
from omniserve_operator.placement.plan import plan
from omniserve_operator.placement.result import Phase, Plan, ServicePlan
from omniserve_operator.reconcile import Reconciler
from omniserve_operator.settings import Settings
from omniserve_operator.store import Store
from omniserve_operator.tenancy import ACCEPTED
from omniserve_operator.world import Node, Service, World


@dataclass(frozen=True)
class Answer:
    """Lines to print, and whether everything could be placed."""

    lines: tuple[str, ...]
    placed: bool


async def dry_run(settings: Settings, manifests: Sequence[LLMService]) -> Answer:
    """Reads the cluster, writes nothing."""
    client = await connect()
    try:
        store = Store(settings, Freshness(time.monotonic()))
        reconciler = Reconciler(
            settings, KubernetesApi(client), store, lambda: False, Metrics(), slices=False
        )
        await reconciler.gather(time.monotonic())
        return answer(_by_heartbeat(store.world(time.monotonic())), manifests)
    finally:
        await client.close()  # type: ignore[no-untyped-call]


def answer(world: World, manifests: Sequence[LLMService]) -> Answer:
    """What the plan with the manifests says that the plan without them does not. Pure."""
    before = plan(world)
    newcomers = [_as_service(world, manifest) for manifest in manifests]
    others = [s for s in world.services if s.uid not in {n.uid for n in newcomers}]
    after = plan(replace(world, services=(*others, *newcomers)))
    told = [after.services[newcomer.uid] for newcomer in newcomers]
    lines = [line for done in told for line in _lines(done)]
    lines += _side_effects(before, after, {newcomer.uid for newcomer in newcomers})
    return Answer(tuple(lines), all(_fits(done) for done in told))


def _as_service(world: World, manifest: LLMService) -> Service:
    """The manifest in place of the object it would change, or as the youngest one."""
    namespace, name = manifest.metadata.namespace, manifest.metadata.name
    for service in world.services:
        if (service.namespace, service.name) == (namespace, name):
            generation = service.generation + (service.spec != manifest.spec)
            return replace(service, spec=manifest.spec, fault=None, generation=generation)
    return Service(
        uid=f"dry-run-{namespace}-{name}",
        namespace=namespace,
        name=name,
        generation=1,
        created="9999-12-31T23:59:59Z",
        resource_version="0",
        spec=manifest.spec,
    )


def _fits(done: ServicePlan) -> bool:
    return done.accepted is ACCEPTED and len(done.staying) >= done.service.wanted


def _lines(done: ServicePlan) -> list[str]:
    key = done.service.key
    if done.accepted is not ACCEPTED:
        return [f"{key}: refused: {done.accepted.reason}: {done.accepted.message}"]
    lines = [
        f"{key}: {r.node}/{r.device}: {r.why or 'as it is'}"
        for r in done.replicas
        if r.phase is Phase.STAYS
    ]
    lines += [
        f"{key}: leaves {r.node}/{r.device}: {r.why}"
        for r in done.replicas
        if r.phase is not Phase.STAYS
    ]
    if not _fits(done):
        lines.append(f"{key}: refused: {done.scheduled.reason}: {done.scheduled.message}")
    return lines or [f"{key}: no replica is wanted"]


def _side_effects(before: Plan, after: Plan, newcomers: set[str]) -> list[str]:
    """Services that would be placed otherwise because of the newcomers."""
    lines = []
    for uid, done in after.services.items():
        if uid in newcomers or uid not in before.services:
            continue
        was = [(r.node, r.device) for r in before.services[uid].staying]
        now = [(r.node, r.device) for r in done.staying]
        if was != now:
            lines.append(f"{done.service.key}: {_places(now)} instead of {_places(was)}")
    return lines


def _places(found: Sequence[tuple[str, str]]) -> str:
    return ", ".join(f"{node}/{device}" for node, device in found) or "no device"


def _by_heartbeat(world: World) -> World:
    """A look at one moment sees no changes: the agents' own clocks have to do."""
    now = datetime.now(UTC)
    return replace(world, nodes=tuple(_aged(node, now) for node in world.nodes))


def _aged(node: Node, now: datetime) -> Node:
    if node.status.heartbeat_time is None:
        return node
    try:
        heartbeat = datetime.fromisoformat(node.status.heartbeat_time)
    except ValueError:
        return node
    if heartbeat.tzinfo is None:
        return node
    return replace(node, silent_s=max(0.0, (now - heartbeat).total_seconds()))
