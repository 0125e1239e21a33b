"""One pod's life: volumes, address, init containers, containers, probes, status, end."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import requests

from e2e.harness.api import Api, ApiError, Object
from e2e.kubelet.addresses import AddressPool
from e2e.kubelet.container import Container, Files, image_folders
from e2e.kubelet.environment import container_environment
from e2e.kubelet.images import Images
from e2e.kubelet.pod_status import ContainerState, pod_status
from e2e.kubelet.probes import Probe
from e2e.kubelet.volumes import NotYetError, Volumes

TICK_S = 0.2
FIRST_BACKOFF_S = 1.0  # a real kubelet begins with 10 s; tests have less time
LONGEST_BACKOFF_S = 10.0


@dataclass(frozen=True)
class NodeResources:
    """What the pods of one kubelet share."""

    api: Api
    images: Images
    addresses: AddressPool
    folder: Path  # logs and volumes of all pods
    pod_environment: Mapping[str, str]  # what every container gets beside its spec's env


class _Runner:
    """Keeps one container of the pod running as its restart policy says."""

    def __init__(self, worker: PodWorker, spec: Object, restart: str) -> None:
        self._worker = worker
        self._restart = restart
        self.state = ContainerState(spec)
        self.container: Container | None = None
        self._probes: dict[str, Probe] = {}
        self._retry_at = 0.0

    def tick(self) -> None:
        """Starts, notices an end, probes."""
        if self.state.done or time.time() < self._retry_at:
            return
        if self.container is None:
            self._start()
        elif (code := self.container.exit_code()) is not None:
            self._ended(code)
        else:
            self._probe()

    def stop_probing(self) -> None:
        self.state.ready = False
        self._probes = {}

    def _start(self) -> None:
        try:
            self.container = self._worker.make_container(self.state.spec)
        except (NotYetError, KeyError, ValueError) as error:
            self.state.waiting, self.state.message = "CreateContainerConfigError", str(error)
            self._retry_at = time.time() + FIRST_BACKOFF_S
            return
        self.state.running, self.state.waiting = True, ""
        self.state.started_at = self.container.started_at
        spec, address = self.state.spec, self._worker.address
        self._probes = {
            kind: Probe(spec[kind], spec, address, self.container.started_at)
            for kind in ("startupProbe", "livenessProbe", "readinessProbe")
            if kind in spec
        }

    def _probe(self) -> None:
        startup = self._probes.get("startupProbe")
        if startup is not None and not startup.passing:
            startup.tick()
            if startup.passing is False:
                self._kill()
            return
        liveness = self._probes.get("livenessProbe")
        readiness = self._probes.get("readinessProbe")
        for probe in (liveness, readiness):
            if probe is not None:
                probe.tick()
        self.state.ready = readiness is None or bool(readiness.passing)
        if liveness is not None and liveness.passing is False:
            self._kill()

    def _kill(self) -> None:
        if self.container is not None:
            self.container.terminate()
            deadline = time.time() + self._worker.grace_s
            while self.container.exit_code() is None and time.time() < deadline:
                time.sleep(TICK_S)
            self.container.kill()

    def _ended(self, code: int) -> None:
        self.container = None
        self.state.running = self.state.ready = False
        self.state.exit_code = code
        again = self._restart == "Always" or (self._restart == "OnFailure" and code != 0)
        if not again or self._worker.stopping:
            return
        self.state.waiting = "CrashLoopBackOff"
        pause_s = min(FIRST_BACKOFF_S * 2**self.state.restarts, LONGEST_BACKOFF_S)
        self._retry_at = time.time() + pause_s
        self.state.restarts += 1


class PodWorker(threading.Thread):
    """Runs one pod until it is deleted or its node is gone."""

    def __init__(self, resources: NodeResources, pod: Object) -> None:
        meta = pod["metadata"]
        super().__init__(name=f"pod {meta['namespace']}/{meta['name']}", daemon=True)
        self.uid: str = meta["uid"]
        self.node_name: str = pod["spec"]["nodeName"]
        self.address = ""
        self._resources = resources
        self._pod = pod
        self._folder = resources.folder / "pods" / f"{meta['namespace']}_{meta['name']}_{self.uid}"
        node_folder = resources.folder / "nodes" / self.node_name
        self._volumes = Volumes(resources.api, pod, self._folder, node_folder)
        restart = pod["spec"].get("restartPolicy", "Always")
        init_restart = "Never" if restart == "Never" else "OnFailure"
        self._init = [
            _Runner(self, spec, init_restart) for spec in pod["spec"].get("initContainers", [])
        ]
        self._main = [_Runner(self, spec, restart) for spec in pod["spec"]["containers"]]
        self._reported: Object = {}
        self._ending = threading.Event()
        self._abandoned = False
        self.grace_s: float = pod["spec"].get("terminationGracePeriodSeconds", 30)

    # ---- from other threads ----

    def update(self, pod: Object) -> None:
        """The API server's newest copy; a deletion timestamp ends the pod gracefully."""
        self._pod = pod
        if pod["metadata"].get("deletionTimestamp"):
            self.grace_s = pod["metadata"].get("deletionGracePeriodSeconds", self.grace_s)
            self._ending.set()

    def end_now(self) -> None:
        """The pod is gone from the API server or its node has died: kill, report nothing."""
        self._abandoned = True
        self.grace_s = 0
        self._ending.set()

    @property
    def stopping(self) -> bool:
        return self._ending.is_set()

    @property
    def containers(self) -> list[Container]:
        """Those that run."""
        return [r.container for r in self._main if r.container is not None]

    def volume_file(self, volume: str, name: str) -> Path:
        """A file in one of the pod's own volumes, as this machine sees it."""
        return self._folder / "volumes" / volume / name

    def logs(self) -> str:
        """Of all containers, oldest restart first."""
        paths = sorted(self._folder.glob("*.log"))
        return "".join(f"==> {p.name}\n{p.read_text(errors='replace')}" for p in paths)

    # ---- the thread ----

    def run(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self.address = self._resources.addresses.allocate()
        try:
            while not self._ending.is_set():
                self._tick()
                self._report()
                self._ending.wait(TICK_S)
        finally:
            self._end()

    def make_container(self, spec: Object) -> Container:
        """Starts the command of one container; NotYetError where something it needs is missing."""
        self._volumes.prepare()
        env = dict(self._resources.pod_environment)
        env["PATH"] = self._resources.images.path
        env["HOME"] = "/"
        env |= container_environment(self._pod, spec, self.address, self._read_data)
        argv = self._resources.images.argv(spec, env)
        container = Container(self._folder / spec["name"], argv, env)
        container.start(self._files(spec), self._folder / f"{spec['name']}.log")
        return container

    def _tick(self) -> None:
        for runner in self._init:
            if not (runner.state.done and runner.state.exit_code == 0):
                runner.tick()
                return
        for runner in self._main:
            runner.tick()

    def _files(self, spec: Object) -> Files:
        context = {
            **(self._pod["spec"].get("securityContext") or {}),
            **(spec.get("securityContext") or {}),
        }
        uid = context.get("runAsUser")
        return Files(
            hostname=self._pod["metadata"]["name"],
            mounts=self._volumes.mounts(spec),
            system=image_folders(self._resources.images.python),
            workdir=spec.get("workingDir", "/"),
            user=None if uid is None else (uid, context.get("runAsGroup", uid)),
            read_only_root=context.get("readOnlyRootFilesystem", False),
        )

    def _read_data(self, plural: str, name: str) -> Mapping[str, str]:
        namespace = self._pod["metadata"]["namespace"]
        found = self._resources.api.find(f"/api/v1/namespaces/{namespace}/{plural}/{name}")
        if found is None:
            raise NotYetError(f"{plural} {namespace}/{name} does not exist")
        data: Mapping[str, str] = found.get("data") or {}
        return data

    def _report(self) -> None:
        """Writes the status when it changed; an API server that is away is asked again."""
        init = [runner.state for runner in self._init]
        main = [runner.state for runner in self._main]
        status = pod_status(self._pod, init, main, self.address)
        if status == self._reported or self._abandoned:
            return
        try:
            self._pod = self._resources.api.patch(f"{self._path}/status", {"status": status})
        except (ApiError, requests.RequestException):
            return
        self._reported = status

    @property
    def _path(self) -> str:
        meta = self._pod["metadata"]
        return f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}"

    def _end(self) -> None:
        running = self.containers + [r.container for r in self._init if r.container is not None]
        for runner in self._main:
            runner.stop_probing()
        self._report()  # not ready from here on, as endpoints must learn before connections break
        for container in running:
            container.terminate()
        deadline = time.time() + self.grace_s
        while time.time() < deadline and any(c.exit_code() is None for c in running):
            if self._abandoned:
                break
            time.sleep(TICK_S)
        for container in running:
            container.kill()
        self._resources.addresses.release(self.address)
        if not self._abandoned:
            self._confirm_deletion()

    def _confirm_deletion(self) -> None:
        """The last word to the API server: the pod is gone."""
        while not self._abandoned:
            with contextlib.suppress(requests.RequestException, ApiError):
                self._resources.api.delete(
                    self._path, gracePeriodSeconds=0, preconditions={"uid": self.uid}
                )
                return
            time.sleep(1)
