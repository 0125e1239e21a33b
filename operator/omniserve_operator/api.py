"""Calls to the API server: plain dictionaries, a time limit on each, and errors with a status."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import aiohttp
from kubernetes.aio import config
from kubernetes.aio.client import ApiClient, Configuration

from omniserve_crds.group import GROUP, VERSION

TIMEOUT_S = 15.0
PAGE = 500

Object = dict[str, Any]


class ApiError(Exception):
    """The server refused, or (status 0) could not be reached."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}" if status else message)
        self.status = status

    @property
    def not_found(self) -> bool:
        return self.status == 404

    @property
    def conflict(self) -> bool:
        """Somebody else was first: a newer version, or an object of that name."""
        return self.status == 409


@dataclass(frozen=True)
class Kind:
    """A resource of the API server."""

    prefix: str  # /api/v1 or /apis/GROUP/VERSION
    plural: str
    namespaced: bool = True

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """The URL's path; without a namespace all of them."""
        scope = f"/namespaces/{namespace}" if self.namespaced and namespace else ""
        parts = [part for part in (name, subresource) if part]
        return "/".join([f"{self.prefix}{scope}/{self.plural}", *parts])


_OMNISERVE = f"/apis/{GROUP}/{VERSION}"
LLM_SERVICES = Kind(_OMNISERVE, "llmservices")
SERVING_NODES = Kind(_OMNISERVE, "servingnodes", namespaced=False)
NODES = Kind("/api/v1", "nodes", namespaced=False)
NAMESPACES = Kind("/api/v1", "namespaces", namespaced=False)
PODS = Kind("/api/v1", "pods")
SERVICES = Kind("/api/v1", "services")
ENDPOINTS = Kind("/api/v1", "endpoints")
ENDPOINT_SLICES = Kind("/apis/discovery.k8s.io/v1", "endpointslices")
EVENTS = Kind("/api/v1", "events")
SECRETS = Kind("/api/v1", "secrets")
CONFIG_MAPS = Kind("/api/v1", "configmaps")
LEASES = Kind("/apis/coordination.k8s.io/v1", "leases")
CONTROLLER_REVISIONS = Kind("/apis/apps/v1", "controllerrevisions")


class Api(Protocol):
    """What the operator needs of an API server."""

    async def get(self, path: str) -> Object: ...
    async def list(self, path: str, labels: str = "") -> tuple[list[Object], str]:
        """All objects, and the version of the list."""

    async def create(self, path: str, body: Object) -> Object: ...
    async def patch(self, path: str, body: Object) -> Object:
        """A JSON merge patch; a `metadata.resourceVersion` in it makes it conditional."""

    async def delete(self, path: str, uid: str) -> None:
        """The object with this uid; one that is gone already is no error."""


async def connect() -> ApiClient:
    """As KUBECONFIG says, else as a pod's service account."""
    configuration = Configuration()
    if kubeconfig := os.environ.get("KUBECONFIG"):
        await config.load_kube_config(  # type: ignore[no-untyped-call]
            config_file=kubeconfig, client_configuration=configuration
        )
    else:
        config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
    configuration.connection_pool_maxsize = 32
    return ApiClient(configuration)


class KubernetesApi:
    """`Api` over kubernetes.aio."""

    def __init__(self, client: ApiClient) -> None:
        self._client = client

    async def get(self, path: str) -> Object:
        return await self._call("GET", path)

    async def list(self, path: str, labels: str = "") -> tuple[list[Object], str]:
        items: list[Object] = []
        query = {"limit": str(PAGE)} | ({"labelSelector": labels} if labels else {})
        while True:
            page = await self._call("GET", path, query=query)
            items += page.get("items") or []
            metadata = page.get("metadata") or {}
            if not metadata.get("continue"):
                return items, metadata.get("resourceVersion", "")
            query["continue"] = metadata["continue"]

    async def create(self, path: str, body: Object) -> Object:
        return await self._call("POST", path, body)

    async def patch(self, path: str, body: Object) -> Object:
        return await self._call("PATCH", path, body, "application/merge-patch+json")

    async def delete(self, path: str, uid: str) -> None:
        body = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": uid}}
        try:
            await self._call("DELETE", path, body)
        except ApiError as error:
            if not error.not_found:
                raise

    async def _call(
        self,
        method: str,
        path: str,
        body: Object | None = None,
        content_type: str = "application/json",
        query: Mapping[str, str] | None = None,
    ) -> Object:
        headers = {"Accept": "application/json", "Content-Type": content_type}
        method, url, headers, sent, _ = await self._client.param_serialize(
            method,
            path,
            query_params=list((query or {}).items()),
            header_params=headers,
            body=body,
            auth_settings=["BearerToken"],
        )
        try:
            async with asyncio.timeout(TIMEOUT_S):
                response = await self._client.call_api(
                    method, url, headers, sent, _request_timeout=TIMEOUT_S
                )
                text: bytes = await response.read()  # type: ignore[no-untyped-call]
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ApiError(0, f"{method} {path}: {error or type(error).__name__}") from error
        return _decoded(response.status, text, f"{method} {path}")


def _decoded(status: int, text: bytes, what: str) -> Object:
    try:
        decoded = json.loads(text) if text else {}
    except ValueError:
        decoded = {"message": text[:200].decode(errors="replace")}
    if status < 400 and isinstance(decoded, dict):
        return decoded
    message = decoded.get("message", "") if isinstance(decoded, dict) else ""
    raise ApiError(status, f"{what}: {message or 'no message'}")
