"""A hub's token from the Secret that the operator mirrors for a model."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from omniserve_agent.node.cluster.api import ApiError
from omniserve_agent.node.errors import NodeError

ReadSecret = Callable[[str], Awaitable[dict[str, bytes] | None]]
TOKEN = "token"


async def hub_token(read_secret: ReadSecret, name: str) -> str:
    """The value named `token`, or the only one; NodeError where there is neither."""
    what = f"Secret {name} with the model's credentials"
    try:
        values = await read_secret(name)
    except ApiError as error:
        raise NodeError(f"{what}: {error}") from error
    if values is None:
        raise NodeError(f"{what} is not there; the operator mirrors it")
    if TOKEN not in values and len(values) != 1:
        raise NodeError(f"{what} has {len(values)} values; name the hub's token {TOKEN!r}")
    value = values.get(TOKEN) or next(iter(values.values()))
    return value.decode(errors="replace").strip()
