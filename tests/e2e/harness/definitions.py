"""The project's CRDs as files, as they are and as a server without CEL takes them."""

from __future__ import annotations

from functools import partial
from typing import Any

import yaml

from e2e.harness.api import Api, Object
from e2e.harness.binaries import ROOT
from e2e.harness.cel_server import CRDS
from e2e.harness.waiting import eventually

SETTLE_TIMEOUT_S = 60
GROUP_PATH = "/apis/omniserve.io/v1alpha1"


def definitions() -> list[Object]:
    """What crds/*.yaml says."""
    return [yaml.safe_load(path.read_text()) for path in sorted((ROOT / "crds").glob("*.yaml"))]


def without_rules(value: Any) -> Any:
    """The same without CEL rules: Kubernetes 1.20 would drop them; clients refuse to send them."""
    if isinstance(value, dict):
        return {k: without_rules(v) for k, v in value.items() if k != "x-kubernetes-validations"}
    return [without_rules(item) for item in value] if isinstance(value, list) else value


def install_definitions(api: Api, found: list[Object]) -> None:
    """Creates the CRDs and waits until their objects can be made."""
    for definition in found:
        if api.find(f"{CRDS}/{definition['metadata']['name']}") is None:
            api.create(CRDS, definition)
    for definition in found:
        name = definition["metadata"]["name"]
        eventually(partial(_established, api, name), SETTLE_TIMEOUT_S, f"CRD {name}")
        plural = definition["spec"]["names"]["plural"]
        eventually(partial(_served, api, plural), SETTLE_TIMEOUT_S, f"{name} served")


def _established(api: Api, name: str) -> bool:
    conditions = (api.get(f"{CRDS}/{name}").get("status") or {}).get("conditions") or []
    return any(c["type"] == "Established" and c["status"] == "True" for c in conditions)


def _served(api: Api, plural: str) -> bool:
    return api.find(f"{GROUP_PATH}/{plural}") is not None


def services_path(namespace: str, name: str = "") -> str:
    """LLMServices of a namespace, or one of them."""
    path = f"{GROUP_PATH}/namespaces/{namespace}/llmservices"
    return f"{path}/{name}" if name else path


def nodes_path(name: str = "") -> str:
    """ServingNodes, or one of them."""
    return f"{GROUP_PATH}/servingnodes" + (f"/{name}" if name else "")
