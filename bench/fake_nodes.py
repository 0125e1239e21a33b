"""The agents of many nodes in one process: each reports its ServingNode as a real agent does.

Started by bench/operator_scale.py, which measures the operator beside it. A change of the spec is
reported at once, figures every 15 s with jitter, as a real agent does.
"""

from __future__ import annotations

import heapq
import random
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import requests

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from e2e.fake_agent.report import Identity, Pretence, status  # noqa: E402
from e2e.harness.api import Access, Api, ApiError, Object  # noqa: E402
from e2e.harness.definitions import nodes_path  # noqa: E402

HEARTBEAT_S = 15.0
JITTER_S = 3.0
WATCH_S = 600
WRITERS = 8
# A window that moves a little from report to report, as measured figures do.
LS_FIGURES = {"ttftMsP50": 100, "ttftMsP99": 300, "tpotMsP50": 20, "tpotMsP99": 40}


class FakeNodes:
    """Follows all ServingNodes and reports for each."""

    def __init__(self, api: Api, seed: int) -> None:
        self._api = api
        self._random = random.Random(seed)
        self._newest: dict[str, Object] = {}
        self._seen: dict[str, int] = {}
        self._due: list[tuple[float, str]] = []
        self._lock = threading.Condition()

    def run(self) -> None:
        """For ever."""
        with ThreadPoolExecutor(WRITERS) as pool:
            for _ in range(WRITERS):
                pool.submit(self._write_on)
            while True:
                try:
                    for found in self._changes():
                        self._take(found)
                except (ApiError, requests.RequestException, ValueError) as error:
                    print(f"watch: {error}", flush=True)
                    time.sleep(1)

    def _changes(self) -> Iterator[Object]:
        listing = self._api.get(nodes_path())
        yield from listing["items"]
        version = listing["metadata"]["resourceVersion"]
        for event in self._api.watch(nodes_path(), WATCH_S, resourceVersion=version):
            if event["type"] in ("ADDED", "MODIFIED"):
                yield event["object"]

    def _take(self, found: Object) -> None:
        name, generation = found["metadata"]["name"], found["metadata"]["generation"]
        with self._lock:
            self._newest[name] = found
            if self._seen.get(name) == generation:
                return
            self._seen[name] = generation
            heapq.heappush(self._due, (time.monotonic(), name))
            self._lock.notify()

    def _write_on(self) -> None:
        while True:
            with self._lock:
                while not self._due or self._due[0][0] > time.monotonic():
                    left = self._due[0][0] - time.monotonic() if self._due else 1.0
                    self._lock.wait(max(left, 0.01))
                _, name = heapq.heappop(self._due)
                found = self._newest[name]
            self._report(name, found)

    def _report(self, name: str, found: Object) -> None:
        number = int(name.rpartition("-")[2])
        identity = Identity(f"10.244.{number // 250}.{number % 250 + 1}", 8081, "t1")
        generation = found["metadata"]["generation"]
        body = status(identity, found.get("spec") or {}, generation, self._pretence(found))
        try:
            self._api.patch(f"{nodes_path(name)}/status", {"status": body})
        except (ApiError, requests.RequestException) as error:
            print(f"{name}: {error}", flush=True)
        pause_s = HEARTBEAT_S + self._random.uniform(-JITTER_S, JITTER_S)
        with self._lock:
            if not any(due == name for _, due in self._due):
                heapq.heappush(self._due, (time.monotonic() + pause_s, name))
                self._lock.notify()

    def _pretence(self, found: Object) -> Pretence:
        reports = {}
        for assignment in found.get("spec", {}).get("assignments") or []:
            if assignment["class"] == "LS":
                offered = self._random.randint(990, 1010)
                window = {"offered": offered, "finished": offered, "attained": offered}
                window |= {name: ms + self._random.randint(0, 3) for name, ms in LS_FIGURES.items()}
                reports[f"{assignment['namespace']}/{assignment['name']}"] = {"ls": window}
        return Pretence(services=reports)


def main() -> None:
    """fake_nodes.py URL CA-FILE SEED, the token on standard input."""
    url, ca_file, seed = sys.argv[1:]
    token = sys.stdin.readline().strip()
    FakeNodes(Api(Access(url, ca_file, token)), int(seed)).run()


if __name__ == "__main__":
    main()
