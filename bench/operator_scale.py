"""`make bench-operator`: one operator, many nodes and services, on a real API server.

200 nodes with fake agents and 1,000 LLMServices; bench/out/operator.json:
change -> ServingNode written, API writes per second at rest, memory of the operator. etcd and
kube-apiserver are real; agents are one process that reports for all nodes (bench/fake_nodes.py).
The file is not called operator.py: beside other scripts that name would shadow Python's own module.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import requests
from rich.console import Console
from rich.table import Table

import report

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from e2e.harness.api import Api, Object  # noqa: E402
from e2e.harness.binaries import find_binaries  # noqa: E402
from e2e.harness.control_plane import ControlPlane, free_port  # noqa: E402
from e2e.harness.daemon import Daemon  # noqa: E402
from e2e.harness.definitions import (  # noqa: E402
    definitions,
    install_definitions,
    nodes_path,
    services_path,
    without_rules,
)
from e2e.harness.specs import be, ls  # noqa: E402

NAMESPACE = "omniserve-system"
TENANTS = 20
MODELS = 150
SETTLE_TIMEOUT_S = 600
CHANGE_TIMEOUT_S = 60
WATCH_S = 3600
MAKERS = 8
TARGETS = {
    "change_to_spec_s_p99": 2.0,
    "writes_per_s_at_rest": 20.0,
    "rss_mb": 300.0,
}
_WRITE = re.compile(
    r'^apiserver_request_total{[^}]*verb="(?:POST|PUT|PATCH|DELETE|APPLY)"[^}]*} (\S+)$', re.M
)


@dataclass(frozen=True)
class Load:
    """How much is put on the operator."""

    nodes: int
    services: int
    changes: int
    rest_s: float
    seed: int


class SpecWatcher(threading.Thread):
    """Remembers when a ServingNode first named a service's generation."""

    def __init__(self, api: Api) -> None:
        super().__init__(daemon=True)
        self._api = api
        self._seen: dict[str, int] = {}
        self.over = False  # nobody asks any more
        self._news = threading.Condition()

    def run(self) -> None:
        """Until `over`; a watch that is lost before is a lost measurement, so it is said."""
        try:
            self._follow()
        except requests.RequestException as error:
            if not self.over:
                print(f"the watch of ServingNodes broke: {error}", file=sys.stderr)

    def _follow(self) -> None:
        listing = self._api.get(nodes_path())
        version = listing["metadata"]["resourceVersion"]
        for event in self._api.watch(nodes_path(), WATCH_S, resourceVersion=version):
            with self._news:
                for assignment in event["object"].get("spec", {}).get("assignments") or []:
                    uid, generation = assignment["uid"], assignment["generation"]
                    self._seen[uid] = max(self._seen.get(uid, 0), generation)
                self._news.notify_all()

    def wait_for(self, uid: str, generation: int) -> float:
        """The moment at which it was seen."""
        with self._news:
            seen = self._news.wait_for(
                lambda: self._seen.get(uid, 0) >= generation, CHANGE_TIMEOUT_S
            )
        if not seen:
            raise TimeoutError(f"generation {generation} of {uid} is on no node")
        return time.monotonic()


class Bench:
    """The parts that run, and what is asked of them."""

    def __init__(self, plane: ControlPlane, load: Load, folder: Path) -> None:
        self.plane = plane
        self.api = plane.api
        self.load = load
        self._random = random.Random(load.seed)
        self._port = free_port()
        program = Path(sys.executable).with_name("omniserve-operator")
        self.operator = Daemon(
            "operator",
            [str(program), "run", f"--namespace={NAMESPACE}", f"--port={self._port}"],
            folder,
            {"KUBECONFIG": str(plane.kubeconfig)},
        )

    # ---- what is there ----

    def make_nodes(self) -> None:
        """Nodes and their agents' pods, Ready; nobody schedules or runs anything here."""
        self.api.create("/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
        accounts = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts"
        self.api.create(accounts, {"metadata": {"name": "default"}})
        with ThreadPoolExecutor(MAKERS) as pool:
            list(pool.map(self._make_node, range(self.load.nodes)))

    def _make_node(self, number: int) -> None:
        name = f"node-{number}"
        self.api.create("/api/v1/nodes", {"metadata": {"name": name}})
        ready = [{"type": "Ready", "status": "True", "reason": "Fake"}]
        path = f"/api/v1/nodes/{name}/status"
        self.api.patch(path, {"status": {"conditions": ready}}, "strategic")
        self.api.patch(f"/api/v1/nodes/{name}", {"spec": {"taints": None}})
        labels = {
            "app.kubernetes.io/name": "omniserve",
            "app.kubernetes.io/component": "agent",
            "omniserve.io/pool": "bench",
            "controller-revision-hash": "t1",
        }
        pods = f"/api/v1/namespaces/{NAMESPACE}/pods"
        spec: Object = {"nodeName": name, "automountServiceAccountToken": False}
        spec["containers"] = [{"name": "agent", "image": "agent"}]
        self.api.create(
            pods, {"metadata": {"name": f"agent-{number}", "labels": labels}, "spec": spec}
        )
        address = f"10.244.{number // 250}.{number % 250 + 1}"
        status = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}
        status |= {"conditions": [{"type": "Ready", "status": "True"}]}
        self.api.patch(f"{pods}/agent-{number}/status", {"status": status})

    def make_services(self) -> None:
        """Every third is LS; they share MODELS models, so that most engines serve several."""
        for tenant in range(TENANTS):
            self.api.create("/api/v1/namespaces", {"metadata": {"name": f"tenant-{tenant}"}})
        with ThreadPoolExecutor(MAKERS) as pool:
            list(pool.map(self._make_service, range(self.load.services)))

    def _make_service(self, number: int) -> None:
        uri = f"file:///models/m{number % MODELS}"
        body = {
            "apiVersion": "omniserve.io/v1alpha1",
            "kind": "LLMService",
            "metadata": {"name": f"s-{number}"},
            "spec": ls(uri) if number % 3 == 0 else be(uri),
        }
        self.api.create(services_path(self._tenant(number)), body)

    @staticmethod
    def _tenant(number: int) -> str:
        return f"tenant-{number % TENANTS}"

    # ---- what is measured ----

    def wait_settled(self) -> float:
        """Seconds until every service is Ready."""
        began = time.monotonic()
        while time.monotonic() - began < SETTLE_TIMEOUT_S:
            self.operator.require_alive()
            ready = self._ready()
            print(f"\r{ready}/{self.load.services} services Ready", end="", file=sys.stderr)
            if ready == self.load.services:
                print(file=sys.stderr)
                return time.monotonic() - began
            time.sleep(2)
        raise TimeoutError(f"not settled: {self._ready()} Ready; {self.operator.log_tail()}")

    def _ready(self) -> int:
        found = self.api.items("/apis/omniserve.io/v1alpha1/llmservices")
        return sum(
            condition["status"] == "True"
            for service in found
            for condition in service.get("status", {}).get("conditions", [])
            if condition["type"] == "Ready"
        )

    def changes(self, watcher: SpecWatcher) -> list[float]:
        """Seconds from the API server's answer to a change until a ServingNode says it."""
        taken = []
        for count in range(self.load.changes):
            number = self._random.randrange(self.load.services)
            path = services_path(self._tenant(number), f"s-{number}")
            sent = time.monotonic()
            answer = self.api.patch(path, {"spec": {"priority": count % 100 + 1}})
            meta = answer["metadata"]
            taken.append(watcher.wait_for(meta["uid"], meta["generation"]) - sent)
        return taken

    def writes_at_rest(self) -> tuple[float, float]:
        """Writes per second that the API server served: all, and the operator's own."""
        before, own_before = self._writes(), self._own_writes()
        began = time.monotonic()
        time.sleep(self.load.rest_s)
        lasted = time.monotonic() - began
        own = self._own_writes() - own_before
        return (self._writes() - before) / lasted, own / lasted

    def _writes(self) -> float:
        return sum(map(float, _WRITE.findall(self._text(f"{self.plane.access.url}/metrics"))))

    def _own_writes(self) -> float:
        text = self._text(f"http://127.0.0.1:{self._port}/metrics")
        found = re.findall(r"^omniserve_operator_writes_total{[^}]*} (\S+)$", text, re.M)
        return sum(map(float, found))

    def _text(self, url: str) -> str:
        headers = {"Authorization": f"Bearer {self.plane.access.token}"}
        answer = requests.get(url, headers=headers, verify=self.plane.access.ca_file, timeout=60)
        answer.raise_for_status()
        return answer.text

    def rss_mb(self) -> float:
        """Of the operator now, in 10^6 bytes."""
        rss: int = psutil.Process(self.operator.pid).memory_info().rss
        return rss / 1e6


@contextmanager
def _agents(plane: ControlPlane, seed: int, log: Path) -> Iterator[None]:
    access = plane.access
    argv = [
        sys.executable,
        str(ROOT / "bench/fake_nodes.py"),
        access.url,
        access.ca_file,
        str(seed),
    ]
    with log.open("wb") as output:
        agents = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            if agents.stdin is None:
                raise RuntimeError("no pipe to the fake agents")
            agents.stdin.write(f"{access.token}\n".encode())
            agents.stdin.flush()
            yield
        finally:
            agents.kill()
            agents.wait(30)


def measure(load: Load, folder: Path) -> dict[str, float]:
    """The figures of operator.json, and a few beside them."""
    with ExitStack() as stack:
        plane = ControlPlane(find_binaries(), folder / "control-plane")
        stack.callback(plane.stop)
        plane.start(controllers=False)
        install_definitions(plane.api, without_rules(definitions()))
        bench = Bench(plane, load, folder)
        bench.make_nodes()
        bench.make_services()
        stack.enter_context(_agents(plane, load.seed, folder / "agents.log"))
        stack.callback(bench.operator.stop)
        bench.operator.start()
        settle_s = bench.wait_settled()
        watcher = SpecWatcher(plane.api)
        watcher.start()
        time.sleep(30)  # what the start left to write is written
        writes, own = bench.writes_at_rest()
        taken = bench.changes(watcher)
        watcher.over = True
        return {
            "change_to_spec_s_p50": statistics.median(taken),
            "change_to_spec_s_p99": statistics.quantiles(taken, n=100)[98],
            "writes_per_s_at_rest": writes,
            "operator_writes_per_s_at_rest": own,
            "rss_mb": bench.rss_mb(),
            "start_to_all_ready_s": settle_s,
        }


def _print(figures: dict[str, float]) -> None:
    table = Table("figure", "measured", "target")
    for name, value in figures.items():
        target = f"under {TARGETS[name]:g}" if name in TARGETS else ""
        table.add_row(name, f"{value:.3f}", target)
    Console().print(table)


def main() -> None:
    """Measures and writes bench/out/operator.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=200)
    parser.add_argument("--services", type=int, default=1000)
    parser.add_argument("--changes", type=int, default=200)
    parser.add_argument("--rest-seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=20261124)
    parser.add_argument("--keep", action="store_true", help="keep logs and data")
    found = parser.parse_args()
    load = Load(found.nodes, found.services, found.changes, found.rest_seconds, found.seed)
    folder = Path(tempfile.mkdtemp(prefix="omniserve-bench-"))
    try:
        figures = measure(load, folder)
    finally:
        if found.keep or os.environ.get("OMNISERVE_KEEP"):
            print(f"logs and data: {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    counts = {"nodes": load.nodes, "services": load.services, "changes": load.changes}
    path = report.write("operator", counts | figures, seed=load.seed)
    _print(figures)
    print(path)


if __name__ == "__main__":
    main()
