"""Keeps up with the node's own object: read, then watch from there, for ever.

The last known object stays in force while the server is away. A deleted one does so for a while
too, since whoever deletes it by mistake, or to make it anew, should not end every engine.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import structlog

from omniserve_agent.node.cluster.api import ApiError, ApiGoneError, NodeApi, NodeObject


@dataclass(frozen=True)
class WatchPolicy:
    """Seconds. Tests bring shorter ones."""

    first_retry_s: float = 0.5
    longest_retry_s: float = 30.0
    missing_poll_s: float = 2.0  # while there is no object yet
    gone_grace_s: float = 60.0  # how long a deleted object stays in force
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    clock: Callable[[], float] = time.monotonic


@dataclass
class NodeWatch:
    """`current` is what is in force; `changed` is called when it is another one."""

    api: NodeApi
    changed: Callable[[], None]
    back: Callable[[], None] = lambda: None  # the server answers after it has been away
    policy: WatchPolicy = field(default_factory=WatchPolicy)
    current: NodeObject | None = None
    connected: bool = False  # whether the last call succeeded
    _missing_since: float | None = None
    _answered: asyncio.Event = field(default_factory=asyncio.Event)  # since the last failure

    async def run(self) -> None:
        """Until cancelled."""
        failures = 0
        while True:
            begun_s = self.policy.clock()
            try:
                await self._read_and_watch()
                failures = 0
            except ApiGoneError:
                failures = 0  # the next read is the remedy
            except ApiError as error:
                self._note_away(str(error))
                lasted = self.policy.clock() - begun_s > self.policy.longest_retry_s
                failures = 1 if lasted else failures + 1
            await self._pause(self._retry_s(failures))

    def take(self, seen: NodeObject | None) -> None:
        """What a read, a watch or a write has shown; older ones than known do not come back."""
        if not self.connected:
            self.connected = True
            self._answered.set()
            self.back()
        if seen is None:
            self._note_missing()
            return
        self._missing_since = None
        known = self.current
        if known is not None and known.uid == seen.uid and seen.generation <= known.generation:
            return
        self.current = seen
        self.changed()

    async def _read_and_watch(self) -> None:
        seen = await self.api.read_node()
        self.take(seen)
        if seen is None:
            await self.policy.sleep(self.policy.missing_poll_s)
            return
        async for event in self.api.watch_node(seen.resource_version):
            self.take(event)
            if event is None:
                return

    async def _pause(self, seconds: float) -> None:
        """Sleep, but no longer than until the server has answered somebody else here."""
        sleep = asyncio.ensure_future(self.policy.sleep(seconds))
        if self.connected:
            await sleep
            return
        answered = asyncio.ensure_future(self._answered.wait())
        try:
            await asyncio.wait({sleep, answered}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleep.cancel()
            answered.cancel()

    def _note_away(self, reason: str) -> None:
        if self.connected or self.current is None:
            structlog.get_logger().warning("API server away", reason=reason)
        self.connected = False
        self._answered.clear()
        self._expire()

    def _note_missing(self) -> None:
        if self.current is None:
            return
        if self._missing_since is None:
            self._missing_since = self.policy.clock()
            structlog.get_logger().warning("ServingNode deleted; its last spec stays for a while")
        self._expire()

    def _expire(self) -> None:
        """A deleted object ends being in force."""
        since = self._missing_since
        if since is not None and self.policy.clock() - since >= self.policy.gone_grace_s:
            self.current = self._missing_since = None
            self.changed()

    def _retry_s(self, failures: int) -> float:
        """Doubling, with jitter: agents should not all come back at one time."""
        policy = self.policy
        wait_s = min(policy.longest_retry_s, policy.first_retry_s * 2.0 ** min(failures, 16) / 2)
        return wait_s * random.uniform(0.5, 1.0)
