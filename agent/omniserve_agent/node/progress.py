"""Progress for a person or a log: one line per stage and per tenth, and one when all is ready."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog

from omniserve_agent.serving import ServedService

_POLL_S = 0.2


class ProgressLog:
    """Logs the steps of one model's preparation, at most eleven lines per stage."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._last: tuple[str, int] | None = None

    def step(self, stage: str, fraction: float) -> None:
        """One step; repeated tenths of a stage are left out."""
        tenth = int(fraction * 10)
        if (stage, tenth) != self._last:
            self._last = (stage, tenth)
            structlog.get_logger().info(f"{stage} {fraction:.0%}", model=self._model)


async def announce(services: Sequence[ServedService], url: str) -> None:
    """Log each engine's start-up lines, then the URL and models once all are ready; cancellable."""
    waiting = {id(s.backend): s.backend for s in services if not s.paused}
    names: dict[int, list[str]] = {}
    for s in services:
        names.setdefault(id(s.backend), []).append(s.served_name)
    shown: dict[int, str] = {}
    while waiting:
        for key, backend in list(waiting.items()):
            if shown.get(key) != backend.progress:
                shown[key] = backend.progress
                structlog.get_logger().info(backend.progress, models=names[key])
            if backend.ready is not None:
                del waiting[key]
        if waiting:
            await asyncio.sleep(_POLL_S)
    models = ", ".join(
        f"{s.served_name} ({'paused' if s.paused else s.service_class})" for s in services
    )
    structlog.get_logger().info(f"serving {models} at {url}")
