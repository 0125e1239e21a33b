"""A Node object and its heartbeats."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping

import requests

from e2e.harness.api import Api, ApiError, Object
from e2e.kubelet.pod_status import rfc3339

HEARTBEAT_S = 3.0
LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"


class Heart(threading.Thread):
    """Registers one Node and keeps it Ready until `stop`."""

    def __init__(
        self, api: Api, name: str, labels: Mapping[str, str], capacity: Mapping[str, str]
    ) -> None:
        super().__init__(name=f"node {name}", daemon=True)
        self._api = api
        self.node_name = name
        self._labels = {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux"} | dict(labels)
        self._capacity = {"cpu": "8", "memory": "32Gi", "pods": "110", "hugepages-2Mi": "0"}
        self._capacity |= dict(capacity)
        self._ending = threading.Event()

    def register(self) -> None:
        """Makes the Node, or takes over one of that name, and says Ready."""
        body: Object = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": self.node_name, "labels": self._labels},
        }
        try:
            self._api.create("/api/v1/nodes", body)
        except ApiError as error:
            if error.code != 409:
                raise
        self.beat()

    def beat(self) -> None:
        """One heartbeat: Ready in the Node's status, and the lease."""
        now = rfc3339(time.time())
        ready = {"type": "Ready", "status": "True", "reason": "KubeletReady"}
        ready |= {"lastHeartbeatTime": now, "message": "the test kubelet"}
        status = {
            "conditions": [ready],
            "capacity": self._capacity,
            "allocatable": self._capacity,
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        }
        self._api.patch(f"/api/v1/nodes/{self.node_name}/status", {"status": status}, "strategic")
        spec = {"holderIdentity": self.node_name, "leaseDurationSeconds": 40}
        spec["renewTime"] = time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", time.gmtime())
        lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "spec": spec}
        lease["metadata"] = {"name": self.node_name}
        try:
            self._api.patch(f"{LEASES}/{self.node_name}", {"spec": spec})
        except ApiError:
            self._api.create(LEASES, lease)

    def run(self) -> None:
        while not self._ending.wait(HEARTBEAT_S):
            # A Node that was deleted stays deleted; an API server that is away comes back.
            with contextlib.suppress(ApiError, requests.RequestException):
                self.beat()

    def stop(self) -> None:
        self._ending.set()
