"""What the kubelet says about a pod: pure, from what its containers do."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from e2e.harness.api import Object


@dataclass
class ContainerState:
    """One container as seen now."""

    spec: Object
    running: bool = False
    ready: bool = False
    started_at: float = 0.0
    exit_code: int | None = None
    restarts: int = 0
    waiting: str = "ContainerCreating"
    message: str = ""

    @property
    def done(self) -> bool:
        """Ended, and nobody will start it again."""
        return not self.running and self.exit_code is not None and not self.waiting


def pod_status(
    pod: Object, init: Sequence[ContainerState], main: Sequence[ContainerState], address: str
) -> Object:
    """The status subresource's contents."""
    ready = bool(main) and all(state.ready for state in main)
    initialised = all(state.done and state.exit_code == 0 for state in init)
    status: Object = {
        "phase": _phase(init, main),
        "hostIP": "127.0.0.1",
        "podIP": address,
        "podIPs": [{"ip": address}],
        "startTime": pod["metadata"]["creationTimestamp"],
        "conditions": _conditions(pod, initialised=initialised, ready=ready),
        "containerStatuses": [_container_status(state) for state in main],
    }
    if init:
        status["initContainerStatuses"] = [_container_status(state) for state in init]
    return status


def _phase(init: Sequence[ContainerState], main: Sequence[ContainerState]) -> str:
    if any(state.done and state.exit_code != 0 for state in init):
        return "Failed"
    if main and all(state.done for state in main):
        return "Succeeded" if all(state.exit_code == 0 for state in main) else "Failed"
    if any(state.running or state.restarts for state in main):
        return "Running"
    return "Pending"


def _conditions(pod: Object, *, initialised: bool, ready: bool) -> list[Object]:
    before = {c["type"]: c for c in (pod.get("status") or {}).get("conditions", [])}
    now = rfc3339(time.time())
    found = [before["PodScheduled"]] if "PodScheduled" in before else []
    for kind, holds in (("Initialized", initialised), ("ContainersReady", ready), ("Ready", ready)):
        status = "True" if holds else "False"
        same = before.get(kind, {}).get("status") == status
        since = before[kind].get("lastTransitionTime", now) if same else now
        found.append({"type": kind, "status": status, "lastTransitionTime": since})
    return found


def _container_status(state: ContainerState) -> Object:
    started = {"startedAt": rfc3339(state.started_at)}
    if state.running:
        phase: Object = {"running": started}
    elif state.waiting:
        phase = {"waiting": {"reason": state.waiting, "message": state.message}}
    else:
        reason = "Completed" if state.exit_code == 0 else "Error"
        phase = {"terminated": {"exitCode": state.exit_code, "reason": reason, **started}}
    last: Object = {}
    if state.restarts and state.exit_code is not None:
        last = {"terminated": {"exitCode": state.exit_code, "reason": "Error"}}
    return {
        "name": state.spec["name"],
        "image": state.spec["image"],
        "imageID": "",
        "ready": state.ready,
        "started": state.running,
        "restartCount": state.restarts,
        "state": phase,
        "lastState": last,
    }


def rfc3339(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
