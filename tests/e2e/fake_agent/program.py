"""A fake `omniserve-agent node`: the real protocol with the API server, no engine behind it.

It runs as the chart's agent pods, with their ServiceAccount, environment and probes. Every assigned
service is Ready at once; its port answers with the node's and the service's name. A test tells it
what else to pretend with `PUT /pretend` on the admin port.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import requests

from e2e.fake_agent.report import Identity, Pretence, status
from e2e.harness.api import Access, Api, ApiError, Object
from e2e.harness.definitions import nodes_path

SECRETS = Path("/var/run/secrets/kubernetes.io/serviceaccount")
HEARTBEAT_S = 5.0
WATCH_S = 60
RETRY_S = 0.5


class FakeAgent:
    """Follows its ServingNode and reports; all writes come from one thread."""

    def __init__(self, api: Api, node: str, identity: Identity) -> None:
        self._api = api
        self._path = nodes_path(node)
        self.node = node
        self._identity = identity
        self.pretence = Pretence()
        self._spec: Object = {}
        self._generation = 0
        self._changed = threading.Event()
        self._servers: dict[int, ThreadingHTTPServer] = {}
        self.synced = False

    def change(self, wanted: Object) -> None:
        """What `PUT /pretend` says from now on."""
        self.pretence = Pretence(**wanted)
        self._changed.set()

    def follow(self) -> None:
        """For ever: the newest spec, by list and watch of one object."""
        selector = f"metadata.name={self.node}"
        while True:
            with contextlib.suppress(ApiError, requests.RequestException, ValueError):
                self._take(self._api.get(self._path))
                events = self._api.watch(nodes_path(), WATCH_S, fieldSelector=selector)
                for event in events:
                    if event["type"] in ("ADDED", "MODIFIED"):
                        self._take(event["object"])
            time.sleep(RETRY_S)

    def report(self) -> None:
        """For ever: at once on a change, else as a heartbeat."""
        while True:
            self._changed.wait(HEARTBEAT_S)
            self._changed.clear()
            if not self.synced or self.pretence.silent:
                continue
            body = status(self._identity, self._spec, self._generation, self.pretence)
            try:
                self._api.patch(f"{self._path}/status", {"status": body})
            except (ApiError, requests.RequestException) as error:
                print(f"report failed: {error}", flush=True)
                time.sleep(RETRY_S)
                self._changed.set()

    def _take(self, found: Object) -> None:
        generation = found["metadata"]["generation"]
        if self.synced and generation == self._generation:
            return
        self._spec, self._generation = found.get("spec") or {}, generation
        self.synced = True
        self._open_doors()
        self._changed.set()

    def _open_doors(self) -> None:
        wanted = {a["port"]: f"{a['namespace']}/{a['name']}" for a in self._assignments()}
        for port in set(self._servers) - set(wanted):
            self._servers.pop(port).shutdown()
        for port in set(wanted) - set(self._servers):
            self._servers[port] = serve(self._identity.address, port, self._door(wanted[port]))

    def _assignments(self) -> list[Object]:
        found: list[Object] = self._spec.get("assignments") or []
        return found

    def _door(self, service: str) -> type[BaseHTTPRequestHandler]:
        agent = self

        class Door(Quiet):
            def do_GET(self) -> None:
                self.answer(200, {"node": agent.node, "service": service})

        return Door

    def admin(self) -> type[BaseHTTPRequestHandler]:
        """The admin port's handler."""
        agent = self

        class Admin(Quiet):
            def do_GET(self) -> None:
                ready = self.path == "/healthz" or agent.synced
                self.answer(200 if ready else 503, {"node": agent.node})

            def do_PUT(self) -> None:
                length = int(self.headers["Content-Length"])
                agent.change(json.loads(self.rfile.read(length)))
                self.answer(200, {})

        return Admin


class Quiet(BaseHTTPRequestHandler):
    """JSON answers, no access log."""

    def answer(self, code: int, body: Object) -> None:
        payload = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *arguments: Any) -> None:
        """Probes would fill the log."""


def serve(host: str, port: int, handler: type[BaseHTTPRequestHandler]) -> ThreadingHTTPServer:
    """A server in a thread of its own."""
    server = ThreadingHTTPServer((host, port), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def main() -> None:
    """Runs until SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    host = os.environ["OMNISERVE_HOST"]
    admin_port = int(os.environ["OMNISERVE_ADMIN_PORT"])
    identity = Identity(host, admin_port, os.environ["OMNISERVE_TEMPLATE"])
    server = f"{os.environ['KUBERNETES_SERVICE_HOST']}:{os.environ['KUBERNETES_SERVICE_PORT']}"
    token = (SECRETS / "token").read_text()
    api = Api(Access(f"https://{server}", str(SECRETS / "ca.crt"), token))
    agent = FakeAgent(api, os.environ["OMNISERVE_NODE_NAME"], identity)
    serve(host, admin_port, agent.admin())
    threading.Thread(target=agent.follow, daemon=True).start()
    print(f"fake agent of {agent.node}: {sys.argv[1:]}", flush=True)
    agent.report()


if __name__ == "__main__":
    main()
