"""Kopf as event source: what is watched, and that every event ends up in the store.

No finalizer, no annotation, no patch: only `on.event` handlers, which need none of them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import kopf

from omniserve_crds.group import GROUP, VERSION
from omniserve_operator.api import (
    ENDPOINT_SLICES,
    ENDPOINTS,
    LLM_SERVICES,
    NAMESPACES,
    NODES,
    PODS,
    SERVICES,
    SERVING_NODES,
    Kind,
)
from omniserve_operator.reconcile import AGENT_LABELS, CHILD_LABELS, Trigger
from omniserve_operator.settings import STALE_AFTER_S, Settings
from omniserve_operator.store import Store

# After a signal or a fault, with the Lease given up by then; a pod has 30 s.
KILLED_AFTER_S = 25


def registry(
    store: Store, trigger: Trigger, *, slices: bool, on_end: Callable[[], None] = lambda: None
) -> kopf.OperatorRegistry:
    """Every kind the operator reacts to; `on_end` is called when Kopf stops, for any reason."""

    async def ended(**_: object) -> None:
        on_end()

    found = kopf.OperatorRegistry()
    kopf.on.login(registry=found)(_login)
    kopf.on.cleanup(registry=found)(ended)
    _watch(found, store, trigger, LLM_SERVICES, (GROUP, VERSION, "llmservices"))
    _watch(found, store, trigger, SERVING_NODES, (GROUP, VERSION, "servingnodes"))
    _watch(found, store, trigger, NODES, ("", "v1", "nodes"))
    _watch(found, store, trigger, NAMESPACES, ("", "v1", "namespaces"))
    _watch(found, store, trigger, PODS, ("", "v1", "pods"))
    _watch(found, store, trigger, SERVICES, ("", "v1", "services"))
    if slices:
        place = ("discovery.k8s.io", "v1", "endpointslices")
        _watch(found, store, trigger, ENDPOINT_SLICES, place)
    else:
        _watch(found, store, trigger, ENDPOINTS, ("", "v1", "endpoints"))
    return found


def settings(given: Settings, *, slices: bool) -> kopf.OperatorSettings:
    """Kopf's settings, each with its reason."""
    found = kopf.OperatorSettings()
    # Events are ours, one per transition, not one per log line.
    found.posting.enabled = False
    # The kinds are known; looking for more needs the right to watch CRDs.
    found.scanning.disabled = True
    # A silent connection must not stay so: watches end by themselves, and dead ones are noticed.
    found.watching.server_timeout = 240
    found.watching.client_timeout = 300
    found.watching.connect_timeout = 10
    # A node is stale after STALE_AFTER_S without news: a dead connection must be gone sooner.
    found.watching.inactivity_timeout = 0.6 * STALE_AFTER_S
    found.networking.request_timeout = 30
    found.networking.connect_timeout = 10
    # At the start a server that is away is waited for ten minutes, then a restart is better.
    # Later a watch begins anew at every inactivity timeout, for as long as the server is away.
    found.networking.error_backoffs = (1, 1, 2, 3, 5, *([10] * 60))
    # Kopf's own end can hang; then it kills the process.
    found.process.ultimate_exiting_timeout = KILLED_AFTER_S
    # One event for an object is as good as many: none of them is remembered.
    found.queueing.idle_timeout = 1.0
    found.watching.label_selectors["v1", "pods"] = AGENT_LABELS
    found.watching.label_selectors["v1", "services"] = CHILD_LABELS
    if slices:
        found.watching.label_selectors["discovery.k8s.io", "endpointslices"] = CHILD_LABELS
    else:
        found.watching.label_selectors["v1", "endpoints"] = CHILD_LABELS
    return found


def _login(**given: Any) -> kopf.ConnectionInfo | None:  # noqa: ANN401  (Kopf's own keywords)
    """KUBECONFIG first, as everywhere, else the pod's service account."""
    return kopf.login_with_kubeconfig(**given) or _login_in_cluster(**given)


def _login_in_cluster(**given: Any) -> kopf.ConnectionInfo | None:  # noqa: ANN401
    """Where the pod's environment says, as the other half of our calls: Kopf would need DNS."""
    found = kopf.login_with_service_account(**given)
    host, port = (os.environ.get(f"KUBERNETES_SERVICE_{part}") for part in ("HOST", "PORT"))
    if found is None or not host or not port:
        return found
    return replace(found, server=f"https://{f'[{host}]' if ':' in host else host}:{port}")


def _watch(
    found: kopf.OperatorRegistry,
    store: Store,
    trigger: Trigger,
    kind: Kind,
    place: tuple[str, str, str],
) -> None:
    async def take_in(event: kopf.RawEvent, **_: object) -> None:
        document = dict(event["object"])
        if event["type"] == "DELETED":
            store.drop(kind, document)
            trigger.pull()
        else:
            urgent = store.put(kind, document, time.monotonic())
            trigger.pull(urgent)

    kopf.on.event(*place, registry=found, id=f"watch-{kind.plural}")(take_in)
