"""Requests that go on while something happens, through the service's endpoints."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from types import TracebackType

import requests

from e2e.harness.api import ApiError
from e2e.harness.cluster import Cluster

PAUSE_S = 0.1
REQUEST_TIMEOUT_S = 60

# Sends one request to http://address:port; raises requests' errors where it is not answered well.
Sender = Callable[[requests.Session, str], None]


def get(session: requests.Session, url: str) -> None:
    """A plain GET, as the fake agents' doors take it."""
    session.get(url, timeout=REQUEST_TIMEOUT_S).raise_for_status()


class Traffic:
    """A context: one client that sends one request after another to the ready addresses in turn."""

    def __init__(self, cluster: Cluster, namespace: str, name: str, sender: Sender = get) -> None:
        self._cluster = cluster
        self._service = (namespace, name)
        self._sender = sender
        self._addresses = cluster.endpoints(namespace, name)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._send_on, daemon=True)
        self.answered = 0
        self.failures: list[str] = []

    def __enter__(self) -> Traffic:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join(REQUEST_TIMEOUT_S + 10)

    def _send_on(self) -> None:
        with requests.Session() as session:
            session.trust_env = False
            while not self._over.is_set():
                self._send(session)
                time.sleep(PAUSE_S)

    def _send(self, session: requests.Session) -> None:
        """As kube-proxy does: the newest endpoints that are known, in turn."""
        with contextlib.suppress(ApiError, requests.RequestException):  # away: the last ones hold
            self._addresses = self._cluster.endpoints(*self._service) or self._addresses
        address, port = self._addresses[self.answered % len(self._addresses)]
        try:
            self._sender(session, f"http://{address}:{port}")
            self.answered += 1
        except requests.RequestException as error:
            self.failures.append(f"{address}:{port}: {error}")
