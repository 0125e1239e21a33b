"""A small kubelet for tests: it really runs the pods bound to its nodes, as local processes.

One object serves several Nodes of this machine. A pod gets an address of its own on `lo`; each of
its containers is a process in mount, process and host-name namespaces of its own. Its root holds
this machine's system, the checkout and the venv, read-only (they stand for the image), the pod's
volumes at their mountPaths, and nothing else. So read-only roots, non-root users, dropped
capabilities, the ServiceAccount's token under /var/run/secrets and "all processes end with the
first" are as in a cluster: programs find the API server as they do in production.

Not done: images, cgroups (limits are not enforced), kube-proxy, `kubectl logs` and `exec`, exec
probes. Back-off begins with 1 s instead of 10.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import requests

from e2e.harness.api import Api, ApiError, Object
from e2e.kubelet.addresses import AddressPool
from e2e.kubelet.images import Images
from e2e.kubelet.node import Heart
from e2e.kubelet.pod import NodeResources, PodWorker

PODS = "/api/v1/pods"
WATCH_S = 240
END_TIMEOUT_S = 60


class Kubelet:
    """Nodes come with `add_node` and go with `lose_node`; `stop` leaves nothing behind."""

    def __init__(self, api: Api, folder: Path, images: Images, third: int = 1) -> None:
        self._api = api
        self._addresses = AddressPool(third)
        server = urlsplit(api.access.url)
        environment = {
            "KUBERNETES_SERVICE_HOST": str(server.hostname),
            "KUBERNETES_SERVICE_PORT": str(server.port),
            "KUBERNETES_SERVICE_PORT_HTTPS": str(server.port),
        }
        self._resources = NodeResources(api, images, self._addresses, folder, environment)
        self._hearts: dict[str, Heart] = {}
        self._workers: dict[str, PodWorker] = {}
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._watcher = threading.Thread(target=self._watch_pods, name="kubelet", daemon=True)

    def start(self) -> None:
        self._watcher.start()

    def stop(self) -> None:
        """Ends every pod's processes at once and takes the addresses away; the API is not told."""
        self._stopped.set()
        for heart in self._hearts.values():
            heart.stop()
        with self._lock:
            workers = list(self._workers.values())
        for worker in workers:
            worker.end_now()
        for worker in workers:
            worker.join(END_TIMEOUT_S)
        self._addresses.release_all()

    # ---- nodes ----

    def add_node(
        self,
        name: str,
        labels: Mapping[str, str] | None = None,
        capacity: Mapping[str, str] | None = None,
    ) -> None:
        """Registers a Ready Node; `capacity` adds to 8 CPUs, 32Gi and 110 pods."""
        heart = Heart(self._api, name, labels or {}, capacity or {})
        heart.register()
        heart.start()
        with self._lock:
            self._hearts[name] = heart
        for pod in self._api.items(PODS, fieldSelector=f"spec.nodeName={name}"):
            self._see(pod)

    def lose_node(self, name: str) -> None:
        """The machine dies: no heartbeat, no process, no word to the API server."""
        with self._lock:
            heart = self._hearts.pop(name)
        heart.stop()
        for worker in self._on_node(name):
            worker.end_now()
            worker.join(END_TIMEOUT_S)

    # ---- pods ----

    def worker(self, namespace: str, name: str) -> PodWorker:
        """The pod's worker; KeyError where this kubelet runs no such pod."""
        for worker in list(self._workers.values()):
            if worker.name == f"pod {namespace}/{name}" and worker.is_alive():
                return worker
        raise KeyError(f"pod {namespace}/{name} is not run here")

    def logs(self) -> str:
        """Of all pods that ever ran, for a failing test."""
        return "\n".join(f"### {w.name}\n{w.logs()}" for w in list(self._workers.values()))

    def _on_node(self, name: str) -> list[PodWorker]:
        return [w for w in list(self._workers.values()) if w.node_name == name and w.is_alive()]

    def _watch_pods(self) -> None:
        while not self._stopped.is_set():
            with contextlib.suppress(ApiError, requests.RequestException, ValueError):
                self._list_and_watch()
            time.sleep(0.5)

    def _list_and_watch(self) -> None:
        listing = self._api.get(PODS)
        items = listing.get("items") or []
        self._forget_missing({pod["metadata"]["uid"] for pod in items})
        for pod in items:
            self._see(pod)
        version = listing["metadata"]["resourceVersion"]
        for event in self._api.watch(PODS, WATCH_S, resourceVersion=version):
            if self._stopped.is_set() or event["type"] == "ERROR":
                return
            if event["type"] == "DELETED":
                self._gone(event["object"]["metadata"]["uid"])
            else:
                self._see(event["object"])

    def _see(self, pod: Object) -> None:
        uid = pod["metadata"]["uid"]
        with self._lock:
            if pod["spec"].get("nodeName") not in self._hearts or self._stopped.is_set():
                return
            worker = self._workers.get(uid)
            if worker is None and pod.get("status", {}).get("phase") not in ("Succeeded", "Failed"):
                worker = self._workers[uid] = PodWorker(self._resources, pod)
                worker.start()
        if worker is not None:
            worker.update(pod)

    def _forget_missing(self, known: set[str]) -> None:
        for uid in set(self._workers) - known:
            self._gone(uid)

    def _gone(self, uid: str) -> None:
        worker = self._workers.get(uid)
        if worker is not None:
            worker.end_now()
