"""The environment of a container: literal values, downward API, Secrets and ConfigMaps, $(NAME)."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping

from e2e.harness.api import Object

_REFERENCE = re.compile(r"\$\((?P<name>[A-Za-z_][A-Za-z0-9_.-]*)\)")
_SUBSCRIPT = re.compile(r"metadata\.(?P<kind>labels|annotations)\['(?P<key>[^']+)'\]")
_SUFFIXES = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40, "k": 10**3, "M": 10**6}
_SUFFIXES |= {"G": 10**9, "": 1}

# Reads a Secret's or ConfigMap's data: (plural, name) -> data.
DataReader = Callable[[str, str], Mapping[str, str]]


def field_value(pod: Object, path: str, pod_ip: str) -> str:
    """A downward API fieldRef."""
    subscript = _SUBSCRIPT.fullmatch(path)
    if subscript is not None:
        values = pod["metadata"].get(subscript["kind"]) or {}
        return str(values.get(subscript["key"], ""))
    if path in ("status.podIP", "status.podIPs"):
        return pod_ip
    if path == "status.hostIP":
        return "127.0.0.1"
    found: object = pod
    for part in path.split("."):
        if not isinstance(found, dict) or part not in found:
            raise KeyError(f"fieldPath {path!r} is not in pod {pod['metadata']['name']}")
        found = found[part]
    return str(found)


def container_environment(
    pod: Object, container: Object, pod_ip: str, read_data: DataReader
) -> dict[str, str]:
    """What the container's spec says, without what the kubelet adds."""
    found: dict[str, str] = {}
    for entry in container.get("env", []):
        found[entry["name"]] = _value(pod, container, entry, pod_ip, read_data, found)
    return found


def expand(text: str, values: Mapping[str, str]) -> str:
    """`$(NAME)` replaced where NAME is known, as Kubernetes does in env, command and args."""
    return _REFERENCE.sub(lambda match: values.get(match["name"], match[0]), text)


def _value(
    pod: Object,
    container: Object,
    entry: Object,
    pod_ip: str,
    read_data: DataReader,
    before: Mapping[str, str],
) -> str:
    source = entry.get("valueFrom")
    if source is None:
        return expand(entry.get("value", ""), before)
    if "fieldRef" in source:
        return field_value(pod, source["fieldRef"]["fieldPath"], pod_ip)
    if "resourceFieldRef" in source:
        return _resource(container, source["resourceFieldRef"])
    if "secretKeyRef" in source:
        reference = source["secretKeyRef"]
        return base64.b64decode(read_data("secrets", reference["name"])[reference["key"]]).decode()
    reference = source["configMapKeyRef"]
    return read_data("configmaps", reference["name"])[reference["key"]]


def _resource(container: Object, reference: Object) -> str:
    kind, _, name = reference["resource"].partition(".")
    quantity = str((container.get("resources") or {}).get(kind, {}).get(name, "0"))
    divisor = str(reference.get("divisor") or "1")
    return str(-(-quantity_milli(quantity) // quantity_milli(divisor)))


def quantity_milli(text: str) -> int:
    """Thousandths of a Kubernetes quantity."""
    if text.endswith("m"):
        return int(text[:-1])
    number = text.rstrip("KMGTik")
    return int(float(number) * 1000) * _SUFFIXES[text[len(number) :]]
