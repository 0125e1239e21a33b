"""SIGTERM and SIGINT as events; the main process's own cores."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import structlog


@dataclass(frozen=True)
class Signals:
    """`stop`: the first SIGTERM or SIGINT asked for an orderly end. `at_once`: a second one said
    that nothing is to be waited for."""

    stop: asyncio.Event = field(default_factory=asyncio.Event)
    at_once: asyncio.Event = field(default_factory=asyncio.Event)

    def came(self) -> None:
        """One more signal."""
        if not self.stop.is_set():
            self.stop.set()
        elif not self.at_once.is_set():
            structlog.get_logger().warning("stopping at once: another signal came")
            self.at_once.set()


def say_draining(open_requests: int, grace_s: float) -> None:
    """Log what the end waits for, and how not to wait."""
    structlog.get_logger().info(
        "draining",
        open_requests=open_requests,
        grace_s=grace_s,
        hint="a second SIGTERM or Ctrl-C stops at once",
    )


@contextlib.contextmanager
def signals() -> Iterator[Signals]:
    """SIGTERM and SIGINT from now on."""
    came = Signals()
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        loop.add_signal_handler(number, came.came)
    try:
        yield came
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


@contextlib.contextmanager
def pinned(cores: Sequence[int]) -> Iterator[None]:
    """Keep this process, and threads it starts from now on, off the engines' cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(cores))
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
