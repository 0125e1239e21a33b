"""Readiness, liveness and startup probes: httpGet and tcpSocket, as the kubelet counts them."""

from __future__ import annotations

import socket
import time
from typing import Any

import requests

from e2e.harness.api import Object


class Probe:
    """Counts successes and failures; `passing` is None until it has decided for the first time."""

    def __init__(self, spec: Object, container: Object, pod_ip: str, started_at: float) -> None:
        self._spec = spec
        self._ports = {
            port["name"]: port["containerPort"]
            for port in container.get("ports", [])
            if "name" in port
        }
        self._pod_ip = pod_ip
        self._due = started_at + spec.get("initialDelaySeconds", 0)
        self._in_a_row = 0
        self._last: bool | None = None
        self.passing: bool | None = None

    def tick(self) -> None:
        """Probes if it is time."""
        now = time.time()
        if now < self._due:
            return
        self._due = now + self._spec.get("periodSeconds", 10)
        ok = self._ask()
        self._in_a_row = self._in_a_row + 1 if ok is self._last else 1
        self._last = ok
        key = "successThreshold" if ok else "failureThreshold"
        if self._in_a_row >= self._spec.get(key, 1 if ok else 3):
            self.passing = ok

    def _ask(self) -> bool:
        timeout_s = self._spec.get("timeoutSeconds", 1)
        try:
            if "httpGet" in self._spec:
                return self._http(self._spec["httpGet"], timeout_s)
            address = (self._pod_ip, self._port(self._spec["tcpSocket"]["port"]))
            with socket.create_connection(address, timeout_s):
                return True
        except (requests.RequestException, OSError):
            return False

    def _http(self, get: Object, timeout_s: float) -> bool:
        scheme = get.get("scheme", "HTTP").lower()
        host = get.get("host", self._pod_ip)
        url = f"{scheme}://{host}:{self._port(get['port'])}{get.get('path', '/')}"
        headers = {header["name"]: header["value"] for header in get.get("httpHeaders", [])}
        with requests.Session() as session:
            session.trust_env = False
            answer = session.get(
                url, timeout=timeout_s, headers=headers, verify=False, allow_redirects=False
            )
        return 200 <= answer.status_code < 400

    def _port(self, port: Any) -> int:
        return port if isinstance(port, int) else int(self._ports[port])
