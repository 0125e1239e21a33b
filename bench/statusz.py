"""What the benchmarks read of an agent's /statusz."""

from __future__ import annotations

import aiohttp
import msgspec


class EngineStats(msgspec.Struct):
    """Of an engine's last report."""

    offloaded_requests: int = 0
    accepted_drafts: int = 0
    rejected_drafts: int = 0


class _Engine(msgspec.Struct):
    stats: EngineStats | None = None


class _Service(msgspec.Struct):
    name: str
    outputTokens: int  # noqa: N815, the name on the wire


class Status(msgspec.Struct):
    """Of an agent with one engine that serves `batch`."""

    services: list[_Service]
    engines: list[_Engine]

    @property
    def be_tokens(self) -> int:
        """Output tokens of `batch` since start."""
        return next(s.outputTokens for s in self.services if s.name == "batch")

    @property
    def engine(self) -> EngineStats:
        """All 0 before its first report."""
        return self.engines[0].stats or EngineStats()


async def read(session: aiohttp.ClientSession, url: str) -> Status:
    """As it is now."""
    async with session.get(f"{url}/statusz") as response:
        return msgspec.json.decode(await response.read(), type=Status)
