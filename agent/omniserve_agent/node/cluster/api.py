"""What the agent asks of the API server: four calls about its own node. Tests bring their own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Protocol


class ApiError(Exception):
    """The server is away, too slow, or refuses: try again later."""


class ApiGoneError(ApiError):
    """410: the version that a watch was to start from is forgotten; read the object anew."""


@dataclass(frozen=True)
class NodeObject:
    """The ServingNode as read. None values: there is none."""

    uid: str
    generation: int
    resource_version: str
    spec: dict[str, Any]


class NodeApi(Protocol):
    """Every call has a time limit of its own and raises ApiError."""

    async def read_node(self) -> NodeObject | None:
        """The node's object, or None while there is none."""

    def watch_node(self, resource_version: str | None) -> AsyncIterator[NodeObject | None]:
        """Changes behind `resource_version` (None: what is there, then changes), None for its
        deletion; ends after a while. Raises ApiGoneError."""

    async def patch_status(self, status: dict[str, Any]) -> NodeObject | None:
        """Write the status; the object as it is then, or None where there is none."""

    async def read_secret(self, name: str) -> dict[str, bytes] | None:
        """A Secret's values in the release namespace, or None where there is none."""


def node_object(body: dict[str, Any]) -> NodeObject:
    """From the object's JSON; ApiError where it is not one."""
    metadata = body.get("metadata")
    if not isinstance(metadata, dict) or not isinstance(body.get("spec") or {}, dict):
        raise ApiError(f"the API server sent no object but {str(body)[:200]}")
    return NodeObject(
        uid=str(metadata.get("uid", "")),
        generation=int(metadata.get("generation") or 0),
        resource_version=str(metadata.get("resourceVersion", "")),
        spec=body.get("spec") or {},
    )
