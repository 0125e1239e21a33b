"""The operator's process: watches, Lease, reconcile loop, health; from start to clean end."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Coroutine
from typing import Any

import kopf
import structlog

from omniserve_crds.group import GROUP
from omniserve_operator import health, watches
from omniserve_operator.api import (
    LLM_SERVICES,
    SERVING_NODES,
    Api,
    ApiError,
    KubernetesApi,
    connect,
)
from omniserve_operator.freshness import Freshness
from omniserve_operator.lease import Leadership, give_up, keep_lease
from omniserve_operator.metrics import Metrics
from omniserve_operator.reconcile import Reconciler
from omniserve_operator.settings import Settings
from omniserve_operator.store import Store

CRD_RETRY_S = 2.0
CRD_ATTEMPTS = 30
# Kopf waits five seconds for what is left of it, then as long as that takes.
KOPF_ENDS_WITHIN_S = 8.0
LEFTOVERS_TURNS = 10
LEFTOVERS_TURN_S = 0.5

log = structlog.get_logger(__name__)


async def has_endpoint_slices(api: Api) -> bool:
    """Whether the server offers discovery.k8s.io/v1; older ones get core Endpoints."""
    try:
        await api.get("/apis/discovery.k8s.io/v1")
    except ApiError as error:
        if error.not_found:
            return False
        raise
    return True


async def kinds_served(api: Api) -> None:
    """Wait for the CRDs: a watch that begins before them would never see an object."""
    wanted = {LLM_SERVICES.plural, SERVING_NODES.plural}
    for _ in range(CRD_ATTEMPTS):
        try:
            found = await api.get(LLM_SERVICES.prefix)
        except ApiError as error:
            if not error.not_found:
                raise
            found = {}
        missing = wanted - {resource["name"] for resource in found.get("resources") or []}
        if not missing and await _group_listed(api):
            return
        log.warning("waiting_for_crds", missing=sorted(missing or wanted))
        await asyncio.sleep(CRD_RETRY_S)
    names = " and ".join(f"{plural}.{GROUP}" for plural in sorted(missing or wanted))
    raise ApiError(404, f"CRD {names} is not served; install the CRDs (crds/*.yaml)")


async def _group_listed(api: Api) -> bool:
    """A server answers at the group's own path before it lists the group, and Kopf looks once, at
    what is listed."""
    groups = (await api.get("/apis")).get("groups") or []
    return GROUP in {group["name"] for group in groups}


async def run(settings: Settings) -> None:
    """Until SIGTERM or SIGINT, which Kopf handles."""
    client = await connect()
    try:
        api = KubernetesApi(client)
        await kinds_served(api)
        slices = await has_endpoint_slices(api)
        log.info("starting", endpoint_slices=slices, identity=settings.identity)
        store = Store(settings, Freshness(time.monotonic()))
        metrics = Metrics()
        leadership = Leadership(store.freshness.contact, lambda: reconciler.trigger.pull())
        reconciler = Reconciler(settings, api, store, leadership.held, metrics, slices=slices)
        app = health.application(reconciler, metrics, leadership.held)
        runner = await health.serve(app, settings.host, settings.port)
        lease = keep_lease(
            leadership, client, settings.namespace, settings.lease_name, settings.identity
        )
        try:
            await _together(_watch(settings, store, reconciler, slices), lease, reconciler.run())
        finally:
            await give_up(api, leadership, settings.namespace, settings.lease_name)
            await runner.cleanup()
    finally:
        await client.close()  # type: ignore[no-untyped-call]


class WatchEndedError(Exception):
    """Without its events the operator would go on with what it knew: it has to start anew."""


async def _watch(settings: Settings, store: Store, reconciler: Reconciler, slices: bool) -> None:
    """Kopf, until a signal.

    An API server that comes back may answer a watch with 404, and Kopf gives up. Its other watches
    can take their cancellation for a pause and go on (Kopf 1.45, nolar/kopf#1276): it never ends.
    """
    ending = asyncio.Event()
    # Kopf cancels every task that began after it.
    ends = asyncio.create_task(ending.wait())
    work = asyncio.create_task(
        kopf.operator(
            registry=watches.registry(store, reconciler.trigger, slices=slices, on_end=ending.set),
            settings=watches.settings(settings, slices=slices),
            standalone=True,
            # Kopf would ask for the user's name, and a container's uid need not have one.
            identity=settings.identity,  # type: ignore[arg-type]  # a NewType kopf doesn't export
            clusterwide=not settings.watch_namespaces,
            namespaces=_namespaces(settings),
        )
    )
    try:
        await asyncio.wait({work, ends}, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait({work}, timeout=KOPF_ENDS_WITHIN_S)
        if not work.done():
            raise WatchEndedError("a watch ended, and the others could not be ended")
        if error := work.exception():
            raise WatchEndedError(f"a watch ended: {error}") from error
    finally:
        ends.cancel()
        work.cancel()


async def _stop_all_but(kept: set[asyncio.Task[Any]]) -> None:
    """Cancel, again where that was swallowed; what is left then is Kopf's to kill."""
    for _ in range(LEFTOVERS_TURNS):
        left = asyncio.all_tasks() - kept
        if not left:
            return
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=LEFTOVERS_TURN_S)


def _namespaces(settings: Settings) -> tuple[str, ...]:
    """Agents run in the release's own namespace."""
    if not settings.watch_namespaces:
        return ()
    return tuple(dict.fromkeys((*settings.watch_namespaces, settings.namespace)))


async def _together(watch: Coroutine[Any, Any, None], *others: Coroutine[Any, Any, None]) -> None:
    """The watch ends on a signal; whatever else ends first is a fault and ends all.

    Kopf cancels every task that began after it, so it starts last.
    """
    before = asyncio.all_tasks()
    tasks = [asyncio.create_task(other) for other in others]
    await asyncio.sleep(0)
    watching = asyncio.create_task(watch)
    done, _ = await asyncio.wait({watching, *tasks}, return_when=asyncio.FIRST_COMPLETED)
    if all(task.cancelled() for task in done):  # Kopf's end caught a pass amid its calls
        done, _ = await asyncio.wait({watching}, timeout=2 * KOPF_ENDS_WITHIN_S)
    for task in (watching, *tasks):
        if task not in done:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
    await _stop_all_but(before)  # what Kopf left
    for task in done:
        if not task.cancelled():
            task.result()
