"""API keys from the Secrets that the operator mirrors into the release namespace.

What was read last stays valid while the API server is away. A Secret that is gone shuts its
service: no key is then right.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import structlog

from omniserve_agent.node.cluster.api import ApiError, NodeApi

REREAD_S = 30.0
RETRY_S = 5.0  # while a key is missing


@dataclass
class KeyRing:
    """Keys by the name of their Secret, re-read every 30 s and when other ones are wanted."""

    api: NodeApi
    changed: Callable[[], None]
    reread_s: float = REREAD_S
    retry_s: float = RETRY_S
    _wanted: frozenset[str] = frozenset()
    _keys: dict[str, frozenset[str]] = field(default_factory=dict)
    _problems: dict[str, str] = field(default_factory=dict)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)

    def want(self, names: Iterable[str]) -> None:
        """The Secrets in use from now on; others are forgotten."""
        wanted = frozenset(names)
        if wanted != self._wanted:
            self._wanted = wanted
            self._keys = {name: keys for name, keys in self._keys.items() if name in wanted}
            self._problems = {n: text for n, text in self._problems.items() if n in wanted}
            self._wake.set()

    def reread(self) -> None:
        """Read again now."""
        self._wake.set()

    def keys(self, name: str | None) -> frozenset[str]:
        """The keys in a Secret; empty without one, or while none is known."""
        return self._keys.get(name, frozenset()) if name else frozenset()

    def problem(self, name: str | None) -> str | None:
        """Why there is no key, or None."""
        if name is None or self._keys.get(name):
            return None
        return self._problems.get(name, f"Secret {name} has not been read yet")

    async def run(self) -> None:
        """Read until cancelled."""
        while True:
            self._wake.clear()
            for name in sorted(self._wanted):
                await self._read(name)
            unknown = any(not self._keys.get(name) for name in self._wanted)
            try:
                async with asyncio.timeout(self.retry_s if unknown else self.reread_s):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _read(self, name: str) -> None:
        before = self._keys.get(name), self._problems.get(name)
        try:
            self._take(name, await self.api.read_secret(name))
        except ApiError as error:
            if name not in self._keys:
                self._problems[name] = f"Secret {name}: {error}"
        if before != (self._keys.get(name), self._problems.get(name)):
            self.changed()

    def _take(self, name: str, values: dict[str, bytes] | None) -> None:
        if name not in self._wanted:
            return
        keys = frozenset() if values is None else keys_in(values)
        if keys:
            self._problems.pop(name, None)
        else:
            fault = "is not there" if values is None else "holds no key"
            self._problems[name] = f"Secret {name} {fault}; the operator mirrors it"
            if self._keys.get(name):
                structlog.get_logger().warning("API keys withdrawn", secret=name, reason=fault)
        self._keys[name] = keys


def keys_in(values: dict[str, bytes]) -> frozenset[str]:
    """Every line of every value is a key; a value that is not text has none."""
    lines = (line.strip() for value in values.values() for line in _text(value).splitlines())
    return frozenset(line for line in lines if line)


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return ""
