"""One server's life in the co-location benchmark: start, fill with BE, run cells, stop."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import psutil

from awake import awake
from colocation_client import BeFeed, CellFigures, client_session, run_cell
from colocation_figures import Slo
from colocation_manifest import write_manifest
from colocation_setup import Device, PolicyRow
from colocation_traces import LsRequest, be_backlog, overflow_backlog
from servers import Program, Server, omniserve, running

LS_WARM_S = 5.0  # of light load, before anything is measured


@dataclass(frozen=True)
class Cell:
    """One stretch of load; `done` takes what it gave."""

    name: str
    trace: Sequence[LsRequest]
    done: Callable[[CellFigures], None]


@dataclass(frozen=True)
class Session:
    """One policy row in one round."""

    device: Device
    row: PolicyRow
    slo: Slo | None
    seed: int
    be_alone_s: float
    warm_trace: Sequence[LsRequest]
    cells: Sequence[Cell]
    log_dir: Path

    def run(self) -> None:
        """Start the server (or two), run every cell, stop. Raises ServerError."""
        cores = sorted(os.sched_getaffinity(0))
        with (
            awake(cores),
            running(self._program(), cores, self.log_dir) as server,
            self._overflow(cores) as other,
        ):
            asyncio.run(self._drive(server, other))

    def _program(self) -> Program:
        slo = (self.slo.ttft_ms, self.slo.tpot_ms) if self.slo else None
        model = {**self.device.model, **self.row.model}
        manifest = write_manifest(self.log_dir / "services.yaml", model, slo)
        flags = [*self.device.flags, *self.row.flags, "--drain-grace", "0"]
        return omniserve(f"{self.device.name}-{self.row.name.replace(' ', '')}", manifest, flags)

    @contextlib.contextmanager
    def _overflow(self, cores: Sequence[int]) -> Iterator[Server | None]:
        """The CPU-only engine where the row has one."""
        if not self.row.overflow:
            yield None
            return
        manifest = write_manifest(self.log_dir / "overflow.yaml", self.device.model, None)
        flags = [*self.device.overflow_flags, "--drain-grace", "0"]
        with running(omniserve("overflow", manifest, flags), cores, self.log_dir) as server:
            yield server

    async def _drive(self, server: Server, other: Server | None) -> None:
        async with client_session() as session, contextlib.AsyncExitStack() as feeds:
            await self._feed(feeds, session, server, other)
            if self.row.best_effort:  # BE has the device for itself at first, under every policy
                await asyncio.sleep(self.be_alone_s)
            await run_cell(session, server.url, None, self.warm_trace)
            for cell in self.cells:
                spent_s = cpu_seconds(server)
                figures = await run_cell(
                    session, server.url, other.url if other else None, cell.trace
                )
                figures.server_cpu_s = cpu_seconds(server) - spent_s
                cell.done(figures)

    async def _feed(
        self,
        feeds: contextlib.AsyncExitStack,
        session: aiohttp.ClientSession,
        server: Server,
        other: Server | None,
    ) -> None:
        if not self.row.best_effort:
            return
        device = self.device
        backlog = be_backlog(device.sizes, self.seed, device.be_places)
        feed = BeFeed(server.url, "batch", backlog, device.be_places)
        await feeds.enter_async_context(feed.running(session))
        if other is not None:
            backlog = overflow_backlog(device.sizes, self.seed, device.overflow_places)
            feed = BeFeed(other.url, "batch", backlog, device.overflow_places)
            await feeds.enter_async_context(feed.running(session))


def cpu_seconds(server: Server) -> float:
    """Of the server and its engines, since they started."""
    root = psutil.Process(server.process.pid)
    spent = [process.cpu_times() for process in (root, *root.children(recursive=True))]
    return float(sum(times.user + times.system for times in spent))
