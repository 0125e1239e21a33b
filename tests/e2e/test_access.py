"""Rights with the chart's own ServiceAccounts: what each may do, and a table of what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from e2e.harness.api import Access, Api, ApiError, Object
from e2e.harness.cluster import Cluster
from e2e.harness.definitions import GROUP_PATH, nodes_path
from e2e.harness.install import NAMESPACE

RELEASE = f"/api/v1/namespaces/{NAMESPACE}"
LEASES = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases"
RBAC = "/apis/rbac.authorization.k8s.io/v1"
NODE = "guarded"


@dataclass(frozen=True)
class Call:
    """One call on behalf of one of the chart's accounts."""

    account: str
    method: str
    path: str
    kind: str = "merge"

    def __str__(self) -> str:
        return f"{self.account} {self.method} {self.path}"


def _calls(account: str, method: str, *paths: str) -> list[Call]:
    return [Call(account, method, path) for path in paths]


FORBIDDEN = [
    *_calls("agent", "list", nodes_path(), "/api/v1/nodes", "/api/v1/pods", "/api/v1/secrets"),
    *_calls("agent", "list", f"{GROUP_PATH}/llmservices", f"{RELEASE}/secrets"),
    *_calls("agent", "list", "/api/v1/namespaces", f"{RELEASE}/configmaps", f"{RELEASE}/pods"),
    *_calls("agent", "patch", nodes_path(NODE), f"/api/v1/nodes/{NODE}"),
    *_calls("agent", "patch", f"{GROUP_PATH}/namespaces/default/llmservices/chat/status"),
    *_calls("agent", "create", nodes_path(), f"{RELEASE}/secrets", f"{RELEASE}/pods", LEASES),
    *_calls("agent", "delete", nodes_path(NODE), f"{RELEASE}/secrets/x"),
    *_calls("agent", "get", "/api/v1/namespaces/default/secrets/x", "/api/v1/nodes/guarded"),
    *_calls("operator", "list", "/api/v1/secrets", f"{RELEASE}/secrets", "/api/v1/pods"),
    *_calls("operator", "list", "/api/v1/namespaces/default/pods", f"{RBAC}/clusterroles"),
    *_calls("operator", "create", "/api/v1/namespaces/default/secrets", f"{RELEASE}/pods"),
    *_calls("operator", "create", f"{GROUP_PATH}/namespaces/default/llmservices"),
    *_calls("operator", "create", f"{RBAC}/clusterrolebindings", f"{RELEASE}/serviceaccounts"),
    *_calls("operator", "patch", f"{GROUP_PATH}/namespaces/default/llmservices/chat"),
    *_calls("operator", "patch", f"{nodes_path(NODE)}/status", f"/api/v1/nodes/{NODE}"),
    *_calls("operator", "patch", f"{RBAC}/clusterroles/omniserve-operator"),
    *_calls("operator", "patch", f"{LEASES}/another", "/api/v1/namespaces/default"),
    *_calls("operator", "delete", f"{GROUP_PATH}/namespaces/default/llmservices/chat"),
    *_calls("operator", "delete", f"/api/v1/nodes/{NODE}", "/api/v1/namespaces/default"),
    *_calls("operator", "delete", "/api/v1/namespaces/default/secrets/x"),
]
ALLOWED = [
    *_calls("agent", "get", nodes_path(NODE), f"{RELEASE}/secrets/x"),
    *_calls("agent", "patch", f"{nodes_path(NODE)}/status"),
    *_calls("operator", "list", nodes_path(), f"{GROUP_PATH}/llmservices", "/api/v1/nodes"),
    *_calls("operator", "list", f"{RELEASE}/pods", "/api/v1/namespaces"),
    *_calls("operator", "get", "/api/v1/namespaces/default/secrets/x", f"{RELEASE}/secrets/x"),
    *_calls("operator", "patch", f"{GROUP_PATH}/namespaces/default/llmservices/chat/status"),
    *_calls("operator", "patch", nodes_path(NODE), f"{LEASES}/omniserve-operator"),
]


@pytest.fixture(scope="module", autouse=True)
def node(cluster: Cluster) -> None:
    cluster.add_node(NODE)
    cluster.ready("agent", 1)


@pytest.fixture(scope="module")
def accounts(cluster: Cluster) -> dict[str, Api]:
    """The API as operator and agents see it."""
    found = {}
    for account in ("operator", "agent"):
        path = f"{RELEASE}/serviceaccounts/omniserve-{account}/token"
        answer = cluster.api.create(path, {"spec": {"expirationSeconds": 3600}})
        access: Access = cluster.api.access
        found[account] = Api(replace(access, token=answer["status"]["token"]))
    return found


def _do(api: Api, call: Call) -> int:
    """The answer's code; nothing is really changed."""
    body: Object = {"metadata": {"name": "x", "annotations": {"tried": "yes"}}}
    dry = {"dryRun": "All"}
    steps: dict[str, Callable[[], object]] = {
        "list": lambda: api.get(call.path),
        "get": lambda: api.get(call.path),
        "create": lambda: api.create(call.path, body, **dry),
        "patch": lambda: api.patch(call.path, {"metadata": body["metadata"]}, **dry),
        "delete": lambda: api.delete(call.path, dryRun=["All"]),
    }
    if call.method == "patch":
        body["metadata"].pop("name")
    try:
        steps[call.method]()
    except ApiError as error:
        return error.code
    return 200


@pytest.mark.parametrize("call", FORBIDDEN, ids=str)
def test_refused(accounts: dict[str, Api], call: Call) -> None:
    assert _do(accounts[call.account], call) == 403


@pytest.mark.parametrize("call", ALLOWED, ids=str)
def test_allowed(accounts: dict[str, Api], call: Call) -> None:
    assert _do(accounts[call.account], call) != 403
