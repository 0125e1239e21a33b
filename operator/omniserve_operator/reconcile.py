"""One level-triggered pass: gather, plan, write; and the loop that runs it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping

import structlog

from omniserve_operator.api import (
    CONTROLLER_REVISIONS,
    ENDPOINT_SLICES,
    ENDPOINTS,
    LLM_SERVICES,
    NAMESPACES,
    NODES,
    PODS,
    SERVICES,
    SERVING_NODES,
    Api,
    ApiError,
    Kind,
)
from omniserve_operator.autoscalers import NodeMarks
from omniserve_operator.children import Children
from omniserve_operator.endpoints import MANAGED_BY
from omniserve_operator.metrics import Metrics
from omniserve_operator.mirror import Mirror, references
from omniserve_operator.nodes import ServingNodes
from omniserve_operator.parse import newest_templates
from omniserve_operator.placement.plan import plan
from omniserve_operator.placement.result import Plan, ServicePlan
from omniserve_operator.settings import WITHDRAWN_S, Settings
from omniserve_operator.settled import Settled
from omniserve_operator.statuses import Statuses
from omniserve_operator.store import Store
from omniserve_operator.world import Node, World
from omniserve_operator.writer import NotLeaderError, Writer, all_of

AGENT_LABELS = "app.kubernetes.io/name=omniserve,app.kubernetes.io/component=agent"
CHILD_LABELS = f"app.kubernetes.io/managed-by={MANAGED_BY}"
# A pass at least this often: staleness, hysteresis and Secrets move without an event.
PASS_EVERY_S = 10.0
# Figures alone do not need a pass more often than this.
FIGURES_PASS_EVERY_S = 2.0
# Full lists: the remedy for whatever a watch has missed.
LISTS_EVERY_S = 300.0
LIST_RETRY_S = 30.0  # after one that failed
REVISIONS_EVERY_S = 10.0
SETTLE_S = 0.05

log = structlog.get_logger(__name__)


class Trigger:
    """Says that something has changed; many changes make one pass."""

    def __init__(self) -> None:
        self._any = asyncio.Event()
        self._urgent = asyncio.Event()

    def pull(self, urgent: bool = True) -> None:
        self._any.set()
        if urgent:
            self._urgent.set()

    async def wait(self, at_most_s: float, figures_s: float = FIGURES_PASS_EVERY_S) -> None:
        """Until a pass is due: `at_most_s` without a change, `figures_s` after figures alone."""
        await _within(self._any, at_most_s)
        if self._any.is_set() and not self._urgent.is_set():
            await _within(self._urgent, min(at_most_s, figures_s))
        await asyncio.sleep(SETTLE_S)
        self._any.clear()
        self._urgent.clear()


async def _within(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return


class Reconciler:
    """Holds the parts of a pass together."""

    def __init__(
        self,
        settings: Settings,
        api: Api,
        store: Store,
        holds_lease: Callable[[], bool],
        metrics: Metrics,
        *,
        slices: bool,
    ) -> None:
        writer = Writer(api, holds_lease, metrics)
        self._settings = settings
        self._api = api
        self._store = store
        self._holds_lease = holds_lease
        self._metrics = metrics
        self._slices = slices
        self._nodes = ServingNodes(store, writer)
        self._marks = NodeMarks(store, writer)
        self._children = Children(store, writer, slices, settings.tls)
        self._statuses = Statuses(store, writer, tls=settings.tls)
        self._mirror = Mirror(settings, api, writer, store)
        self._settled = Settled(store, ENDPOINT_SLICES if slices else ENDPOINTS)
        self._listed_s: dict[Kind, float] = {}
        self._revisions_s: float | None = None
        self._took_s = 0.0
        self.trigger = Trigger()
        self.turned_s = time.monotonic()  # the loop's last turn, for liveness
        self.passed_s: float | None = None  # the last pass that went through, for readiness

    async def run(self) -> None:
        """Passes, until cancelled; nothing is done without the Lease."""
        while True:
            waits = self._store.withdrawing(time.monotonic())
            # Figures may take a fifth of the time at most, however many services there are.
            figures_s = max(FIGURES_PASS_EVERY_S, 4 * self._took_s)
            await self.trigger.wait(WITHDRAWN_S / 2 if waits else PASS_EVERY_S, figures_s)
            began_s = time.monotonic()
            leads = self._holds_lease()
            self._metrics.leader.set(leads)
            if leads:
                await self._guarded_pass()
            else:
                self.look_anew()
            self.turned_s = time.monotonic()
            self._took_s = self.turned_s - began_s

    async def _guarded_pass(self) -> None:
        try:
            with self._metrics.passes.time():
                failures = await self.one_pass(time.monotonic())
        except NotLeaderError:
            log.warning("lease_lost_during_a_pass")
            return
        except ApiError as error:
            log.warning("pass_failed", error=str(error))
            failures = 1
        except Exception:
            # A fault of ours in one pass must not end the operator: the next one sees more.
            log.exception("pass_failed")
            failures = 1
        else:
            # One object that cannot be written does not make the operator unready.
            self.passed_s = time.monotonic()
        if failures:
            self._metrics.failures.inc()

    async def one_pass(self, now_s: float) -> int:
        """Gather, plan, write; the number of things that could not be carried out."""
        failures = await self.gather(now_s)
        world = self._store.world(now_s)
        failures += await self._mirror.carry_out(world, now_s)
        world = self._store.world(now_s)
        done = plan(world)
        self._metrics.observe(world, done)
        return failures + await self._write(world, done, now_s)

    async def gather(self, now_s: float) -> int:
        """Full lists when they are due; the watches bring the rest. Lists that failed.

        At first all of them, then one in a pass: a change need not wait for seven lists. One that
        fails later is made again in a while: what the watches bring goes on meanwhile.
        """
        failures = 0
        for kind, labels in self._due_lists(now_s):
            try:
                await self._list(kind, labels, now_s)
                self._listed_s[kind] = now_s
                if kind is LLM_SERVICES:
                    self._mirror.forget()
            except ApiError as error:
                if kind not in self._listed_s:
                    raise
                log.warning("not_listed", kind=kind.plural, error=str(error))
                self._listed_s[kind] = now_s - LISTS_EVERY_S + LIST_RETRY_S
                failures += 1
        return failures + await self._note_revisions(now_s)

    async def _note_revisions(self, now_s: float) -> int:
        """Of agents' templates, where that is due; 1 where it failed."""
        before_s = self._revisions_s
        if before_s is not None and now_s - before_s < REVISIONS_EVERY_S:
            return 0
        try:
            path = CONTROLLER_REVISIONS.path(self._settings.namespace)
            found, _ = await self._api.list(path, AGENT_LABELS)
        except ApiError as error:
            if before_s is None:
                raise
            log.warning("not_listed", kind=CONTROLLER_REVISIONS.plural, error=str(error))
            return 1
        self._store.newest_templates, self._revisions_s = newest_templates(found), now_s
        return 0

    def look_anew(self) -> None:
        """Take nothing for known: others may have written meanwhile."""
        self._settled.forget_others(set())
        self._listed_s.clear()
        self._revisions_s = None

    def _due_lists(self, now_s: float) -> list[tuple[Kind, str]]:
        new = [entry for entry in self._lists() if entry[0] not in self._listed_s]
        if new:
            return new
        kind, labels = min(self._lists(), key=lambda entry: self._listed_s[entry[0]])
        return [(kind, labels)] if now_s - self._listed_s[kind] >= LISTS_EVERY_S else []

    def _lists(self) -> list[tuple[Kind, str]]:
        return [
            (NODES, ""),
            (NAMESPACES, ""),
            (PODS, AGENT_LABELS),
            (SERVING_NODES, ""),
            (LLM_SERVICES, ""),
            (SERVICES, CHILD_LABELS),
            (ENDPOINT_SLICES if self._slices else ENDPOINTS, CHILD_LABELS),
        ]

    async def _list(self, kind: Kind, labels: str, now_s: float) -> None:
        """Namespaced kinds only where they are watched."""
        watched = self._settings.watch_namespaces if kind.namespaced else ()
        namespaces = (self._settings.namespace,) if kind is PODS else watched or ("",)
        lists = [await self._api.list(kind.path(namespace), labels) for namespace in namespaces]
        items = [item for found, _ in lists for item in found]
        # The oldest's: what was made after it is missing in it and is not gone.
        self._store.replace(kind, items, lists[0][1], now_s)

    async def _write(self, world: World, done: Plan, now_s: float) -> int:
        """Nodes first, since a change is waited for there; nobody is drained at once anyway."""
        nodes = {node.name: node for node in world.nodes}
        failures = await all_of(
            self._nodes.carry_out(nodes[name], spec, now_s)
            for name, spec in done.nodes.items()
            if spec != nodes[name].spec
        )
        self._statuses.forget_others(set(done.services))
        self._store.forget_others(set(done.services))
        self._settled.forget_others(set(done.services))
        in_turn = self._statuses.in_turn(done.services.values(), now_s)
        failures += await all_of(
            self._service(s, nodes, done.closing, now_s)
            for s in in_turn
            if not self._settled.is_settled(s, nodes, done.closing)
        )
        failures += await all_of(self._nodes.restart(pod) for pod in done.restarts)
        if self._settings.protect_nodes:
            failures += await all_of(
                self._marks.carry_out(name, bool(spec.assignments), now_s)
                for name, spec in done.nodes.items()
            )
        return failures + await self._mirror.clean_up(_copies_in_use(world, done))

    async def _service(
        self,
        service: ServicePlan,
        nodes: Mapping[str, Node],
        closing: frozenset[str],
        now_s: float,
    ) -> None:
        """What it owns, then what is said of it, even if what it owns cannot be written."""
        owned = False
        try:
            owned = await self._children.carry_out(service, nodes, closing, now_s)
        finally:
            told = await self._statuses.carry_out(service, nodes, now_s)
        if owned and told:
            self._settled.note(service, nodes, closing)


def _copies_in_use(world: World, done: Plan) -> set[str]:
    """Copies of Secrets that a node's spec names, or that a service's may."""
    engines = [e.credentials_secret for spec in done.nodes.values() for e in spec.engines]
    keys = [a.api_keys_secret for spec in done.nodes.values() for a in spec.assignments]
    named = {reference.copy for s in world.services for reference in references(s)}
    return named | {name for name in (*engines, *keys) if name}
