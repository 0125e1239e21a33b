"""`NodeApi` over the official client's asyncio half."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import json
import os
import random
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
from kubernetes.aio import client, config

from omniserve_agent.node.cluster.api import ApiError, ApiGoneError, NodeObject, node_object
from omniserve_agent.node.errors import NodeError
from omniserve_crds.group import GROUP, VERSION

PLURAL = "servingnodes"
CALL_S = 15.0
WATCH_S = 240  # what the server is asked for; spread, so that agents do not come back together
WATCH_SPREAD_S = 60
WATCH_SLACK_S = 15.0
MERGE_PATCH = "application/merge-patch+json"
NOT_FOUND, GONE = 404, 410


class KubernetesApi:
    """One node's calls, as its own ServiceAccount may make them."""

    def __init__(self, api: client.ApiClient, node_name: str, namespace: str) -> None:
        self._objects = client.CustomObjectsApi(api)
        self._core = client.CoreV1Api(api)
        self._node_name = node_name
        self._namespace = namespace

    async def read_node(self) -> NodeObject | None:
        """See NodeApi."""
        with _translated():
            try:
                body = await self._objects.get_cluster_custom_object(
                    GROUP, VERSION, PLURAL, self._node_name, _request_timeout=CALL_S
                )
            except client.ApiException as error:
                _raise_unless_missing(error)
                return None
        return node_object(_as_dict(body))

    async def watch_node(self, resource_version: str | None) -> AsyncIterator[NodeObject | None]:
        """See NodeApi. The server ends the watch; a dead connection ends a little later."""
        watch_s = WATCH_S + random.randrange(WATCH_SPREAD_S)
        with _translated():
            async with asyncio.timeout(watch_s + WATCH_SLACK_S):
                response = await self._objects.list_cluster_custom_object_without_preload_content(
                    GROUP,
                    VERSION,
                    PLURAL,
                    field_selector=f"metadata.name={self._node_name}",
                    resource_version=resource_version,
                    timeout_seconds=watch_s,
                    watch=True,
                    _request_timeout=watch_s + WATCH_SLACK_S,
                )
                try:
                    if response.status != 200:
                        _refuse(response.status, (await response.text())[:300])
                    while line := await response.content.readline():
                        yield _event(json.loads(line))
                finally:
                    response.close()

    async def patch_status(self, status: dict[str, Any]) -> NodeObject | None:
        """See NodeApi."""
        with _translated():
            try:
                body = await self._objects.patch_cluster_custom_object_status(
                    GROUP,
                    VERSION,
                    PLURAL,
                    self._node_name,
                    {"status": status},
                    _content_type=MERGE_PATCH,
                    _request_timeout=CALL_S,
                )
            except client.ApiException as error:
                _raise_unless_missing(error)
                return None
        return node_object(_as_dict(body))

    async def read_secret(self, name: str) -> dict[str, bytes] | None:
        """See NodeApi."""
        with _translated():
            try:
                secret = await self._core.read_namespaced_secret(
                    name, self._namespace, _request_timeout=CALL_S
                )
            except client.ApiException as error:
                _raise_unless_missing(error)
                return None
        try:
            return {k: base64.b64decode(v) for k, v in (secret.data or {}).items()}
        except binascii.Error as error:
            raise ApiError(f"Secret {name}: a value is not base64: {error}") from error


@contextlib.asynccontextmanager
async def connected(node_name: str, namespace: str) -> AsyncIterator[KubernetesApi]:
    """A client as KUBECONFIG says, else as the pod's ServiceAccount; NodeError without either."""
    settings = client.Configuration()
    path = os.environ.get("KUBECONFIG")
    try:
        if path:
            await config.load_kube_config(  # type: ignore[no-untyped-call]
                path, client_configuration=settings, persist_config=False
            )
        else:
            config.load_incluster_config(  # type: ignore[no-untyped-call]
                client_configuration=settings
            )
    except (config.ConfigException, OSError) as error:
        raise NodeError(
            f"no API server: {error}; set KUBECONFIG or run in a pod with a ServiceAccount"
        ) from error
    async with client.ApiClient(settings) as api:
        yield KubernetesApi(api, node_name, namespace)


def _event(event: dict[str, Any]) -> NodeObject | None:
    body = _as_dict(event.get("object"))
    match event.get("type"):
        case "ADDED" | "MODIFIED" | "BOOKMARK":
            return node_object(body)
        case "DELETED":
            return None
    _refuse(int(body.get("code") or 0), str(body.get("message") or event)[:300])
    return None


def _refuse(status: int, message: str) -> None:
    if status == GONE:
        raise ApiGoneError(message)
    raise ApiError(f"the API server answered {status}: {message}")


def _raise_unless_missing(error: client.ApiException) -> None:
    if error.status != NOT_FOUND:
        raise error


def _as_dict(body: object) -> dict[str, Any]:
    if not isinstance(body, dict):
        raise ApiError(f"the API server sent no object but {str(body)[:200]}")
    return body


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except client.ApiException as error:
        raise ApiError(f"the API server answered {error.status}: {_message(error)}") from error
    except (aiohttp.ClientError, OSError, ValueError) as error:  # TimeoutError is an OSError
        reason = str(error) or type(error).__name__
        raise ApiError(f"the API server cannot be reached: {reason}") from error


def _message(error: client.ApiException) -> str:
    """The server's own words where it has some."""
    try:
        return str(json.loads(error.body or "")["message"])[:500]
    except (ValueError, KeyError, TypeError):
        return str(error.reason)
