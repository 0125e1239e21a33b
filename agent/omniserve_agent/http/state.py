"""What the handlers of one server share."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace

from aiohttp import web

from omniserve_agent.http.bodies import Bodies
from omniserve_agent.http.merge import Merge
from omniserve_agent.http.metrics import Metrics
from omniserve_agent.http.open_requests import OpenRequests
from omniserve_agent.http.records import Books, Clock
from omniserve_agent.http.registry import ServiceRegistry
from omniserve_agent.http.settings import HttpSettings
from omniserve_agent.http.tokenizing import Tokenizing


@dataclass
class State:
    """`limits`: the last known request limit of each engine, in tokens, by service key; kept while
    an engine restarts so that BE requests can wait for it."""

    registry: ServiceRegistry
    settings: HttpSettings
    clock: Clock
    metrics: Metrics
    books: Books
    tokenizing: Tokenizing
    limits: dict[str, int] = field(default_factory=dict)
    open_requests: OpenRequests = field(default_factory=OpenRequests)
    probes: dict[str, asyncio.Task[str | None]] = field(default_factory=dict)
    merges: set[Merge] = field(default_factory=set)
    bodies: Bodies = field(default_factory=Bodies)
    in_flight: int = 0  # admitted requests; those still being received are not among them
    draining: bool = False

    def of_port(self, registry: ServiceRegistry) -> State:
        """The state of one more port: its own routes, requests and draining; the rest shared."""
        return replace(self, registry=registry, merges=set(), in_flight=0, draining=False)


STATE = web.AppKey("state", State)
