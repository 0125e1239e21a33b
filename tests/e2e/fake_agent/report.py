"""What a fake agent reports: pure, from the node's spec and what the test asked it to pretend."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Object = dict[str, Any]
VERSION = "0.1.0-fake"
HOST_KV_BYTES = 8 << 30


@dataclass(frozen=True)
class Pretence:
    """What the test wants seen; `services` maps namespace/name to fields of its report."""

    devices: int = 1
    services: Mapping[str, Object] = field(default_factory=dict)
    silent: bool = False  # report nothing, as an agent that hangs


@dataclass(frozen=True)
class Identity:
    """Who reports."""

    address: str
    admin_port: int
    template: str
    host_cores: int = 8


def status(identity: Identity, spec: Object, generation: int, pretence: Pretence) -> Object:
    """A whole ServingNode status: every assigned service is Ready at once, draining ones drain."""
    services = [_service(a, spec, pretence) for a in spec.get("assignments") or []]
    ready = sum(service["state"] == "Ready" for service in services)
    return {
        "heartbeatTime": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "observedGeneration": generation,
        "agentVersion": VERSION,
        "agentTemplate": identity.template,
        "address": identity.address,
        "adminPort": identity.admin_port,
        "devices": [_device(number) for number in range(pretence.devices)],
        "hostCores": identity.host_cores,
        "hostKvBytes": HOST_KV_BYTES,
        "engines": [_engine(engine) for engine in spec.get("engines") or []],
        "services": services,
        "engineSummary": f"{len(spec.get('engines') or [])}/{pretence.devices}",
        "readySummary": f"{ready}/{len(services)}",
    }


def _device(number: int) -> Object:
    return {"id": f"cuda:{number}", "kind": "Fake GPU", "memoryBytes": 80 << 30, "healthy": True}


def _engine(engine: Object) -> Object:
    held = engine["hostKvBytes"]
    found = {"device": engine["device"], "key": engine["key"], "hostKvBytes": held}
    return found | {"hostKvFreeBytes": held, "iterationMicros": 10_000, "rowMicros": 100}


def _service(assignment: Object, spec: Object, pretence: Pretence) -> Object:
    draining = assignment.get("drain") or spec.get("drain")
    report: Object = {
        "uid": assignment["uid"],
        "observedGeneration": assignment["generation"],
        "state": "Draining" if draining else "Ready",
        "reason": "Draining" if draining else "Answered",
    }
    if assignment["class"] == "LS":
        report["ls"] = {"offered": 0, "finished": 0, "attained": 0}
    else:
        report["be"] = {"tokensPerMinute": 0, "queued": 0, "running": 0, "throttledPercent": 0}
    wanted = pretence.services.get(f"{assignment['namespace']}/{assignment['name']}", {})
    return report | wanted
