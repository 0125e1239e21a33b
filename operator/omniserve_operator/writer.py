"""Writes: none without the Lease, each counted, a bounded number at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

import structlog

from omniserve_operator.api import Api, ApiError, Kind, Object
from omniserve_operator.metrics import Metrics

AT_A_TIME = 16

log = structlog.get_logger(__name__)


class NotLeaderError(Exception):
    """The Lease is not held: nothing may be written."""


class Writer:
    """The only way to change something on the API server."""

    def __init__(self, api: Api, holds_lease: Callable[[], bool], metrics: Metrics) -> None:
        self._api = api
        self._holds_lease = holds_lease
        self._metrics = metrics

    async def create(self, kind: Kind, namespace: str, body: Object) -> Object:
        self._check(kind, "create")
        return await self._counted(kind, self._api.create(kind.path(namespace), body))

    async def patch(
        self, kind: Kind, namespace: str, name: str, body: Object, subresource: str = ""
    ) -> Object:
        self._check(kind, "patch")
        path = kind.path(namespace, name, subresource)
        return await self._counted(kind, self._api.patch(path, body))

    async def delete(self, kind: Kind, namespace: str, name: str, uid: str) -> None:
        self._check(kind, "delete")
        await self._api.delete(kind.path(namespace, name), uid)

    async def read(self, kind: Kind, namespace: str, name: str) -> Object:
        """What is there now, before a write that depends on it."""
        return await self._api.get(kind.path(namespace, name))

    def _check(self, kind: Kind, verb: str) -> None:
        if not self._holds_lease():
            raise NotLeaderError
        self._metrics.writes.labels(kind.plural, verb).inc()

    async def _counted(self, kind: Kind, call: Coroutine[Any, Any, Object]) -> Object:
        try:
            return await call
        except ApiError as error:
            if error.conflict:
                self._metrics.conflicts.labels(kind.plural).inc()
            raise


async def all_of(steps: Iterable[Coroutine[Any, Any, None]]) -> int:
    """Run the steps, some at a time; the number of those that failed, each of them logged.

    One object that cannot be written does not keep the others from it. A lost Lease ends it all.
    """
    limit = asyncio.Semaphore(AT_A_TIME)

    async def one(step: Coroutine[Any, Any, None]) -> bool:
        async with limit:
            try:
                await step
            except ApiError as error:
                log.warning("write_failed", error=str(error))
                return False
        return True

    results = await asyncio.gather(*(one(step) for step in steps), return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return sum(result is False for result in results)
