"""Keeps one engine process alive: starts, watches, restarts and stops it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import time
from asyncio.subprocess import Process
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import structlog
import zmq.asyncio

from omniserve_agent.engine.messages import EngineConfig, Failed, FromEngine, Ready, Shutdown
from omniserve_agent.node.backoff import Backoff, RestartPolicy, Starts, Watchdog
from omniserve_agent.node.engine_client import EngineClient
from omniserve_agent.node.engine_link import EngineLink
from omniserve_agent.node.locality import memory_line
from omniserve_agent.node.process import end, ended_how, spawn

ENGINE_COMMAND = (sys.executable, "-m", "omniserve_agent.engine")
PERMANENT_FAILURE_CODE = 2
# Of its own making; others are sent from outside, as the kernel does where memory runs out.
FAULTS = (signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV)


@dataclass(frozen=True)
class Supervision:
    """How patient a supervisor is; clock and sleep are given by tests."""

    restart: RestartPolicy = field(default_factory=RestartPolicy)
    watchdog: Watchdog = field(default_factory=Watchdog)
    poll_s: float = 0.5
    stop_s: float = 10.0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep


@dataclass
class _Life:
    """What is known of one process from start to end."""

    heard_at: float
    ready_at: float | None = None
    error: str | None = None  # what it died of, as far as it is known
    permanent: bool = False  # said by the engine: it can never start
    returncode: int | None = None


@dataclass
class Supervisor:
    """One engine's keeper. `run` returns after `stop`, or when the engine is given up."""

    client: EngineClient
    config: EngineConfig
    context: zmq.asyncio.Context
    directory: Path
    cores: Collection[int] = ()  # the child's core mask; its threads pin themselves within
    command: Sequence[str] = ENGINE_COMMAND
    supervision: Supervision = field(default_factory=Supervision)
    failure: str | None = None  # why it was given up
    _was_ready: bool = False
    _starts: Starts = field(default_factory=Starts)
    _lives: int = 0
    _stopping: asyncio.Event = field(default_factory=asyncio.Event)

    def stop(self) -> None:
        """Ask `run` to shut the engine down and return."""
        self._stopping.set()

    async def run(self) -> None:
        """Start the engine again whenever it ends, within the restart policy."""
        backoff = Backoff(self.supervision.restart)
        try:
            while not self._stopping.is_set():
                life, reason = await self._live()
                delay_s = self._delay_s(backoff, life, reason)
                if delay_s is None:
                    break
                self._log("engine will be started again", reason=reason, delay_s=delay_s)
                await self._pause(delay_s)
        finally:
            self.client.give_up(self.failure or "the agent is stopping")

    def _delay_s(self, backoff: Backoff, life: _Life, reason: str) -> float | None:
        """Seconds until the next start; None: there is none, and `failure` says why."""
        if self._stopping.is_set():
            return None
        if not self._was_ready:
            self.failure = self._hopeless(life, reason)
            if self.failure is not None:
                return None
        ready_s = 0.0 if life.ready_at is None else self.supervision.clock() - life.ready_at
        delay_s = backoff.after_life(ready_s)
        if delay_s is None:
            self.failure = f"{reason}; {backoff.failures} failures in a row, no further start"
        return delay_s

    def _hopeless(self, life: _Life, reason: str) -> str | None:
        """Why the next start would fail as well; None: it may not."""
        if life.permanent:
            return life.error
        if life.returncode == PERMANENT_FAILURE_CODE:
            return life.error or f"{reason}; its error output says why"
        if self._starts.fail_alike(life.error):
            return f"{life.error}; two starts in a row failed so"
        return None

    async def _pause(self, delay_s: float) -> None:
        """Sleep, but wake up for `stop`."""
        sleep = asyncio.ensure_future(self.supervision.sleep(delay_s))
        stop = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait({sleep, stop}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleep.cancel()
            stop.cancel()

    async def _live(self) -> tuple[_Life, str]:
        """One process from start to end, and why it ended."""
        self._lives += 1
        life = _Life(heard_at=self.supervision.clock())
        reason = "the engine could not be started"
        with EngineLink(self.context, self.directory, self.client.name, self._lives) as link:
            self.client.attach(link.send)
            try:
                reason = await self._attend(link, life)
            finally:
                self.client.detach(reason)
        return life, reason

    async def _attend(self, link: EngineLink, life: _Life) -> str:
        """Start a process, move messages while it lives, leave nothing of it behind."""

        def receive(message: FromEngine) -> None:
            self._hear(life, message)

        process = await spawn(self._program(link), cores=self.cores)
        moving = asyncio.create_task(link.run(receive))
        try:
            reason = await self._watch(process, moving, link, life)
        finally:
            moving.cancel()  # first: a process that cannot be killed would keep it
            await end(process)
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await moving  # its error, if any, is the reason that `_watch` gave
        life.returncode = process.returncode
        await link.drain(receive)
        return life.error or reason

    def _program(self, link: EngineLink) -> list[str]:
        config = msgspec.structs.replace(
            self.config,
            to_engine=link.endpoints.to_engine,
            from_engine=link.endpoints.from_engine,
        )
        return [*self.command, "--config", msgspec.json.encode(config).decode()]

    def _hear(self, life: _Life, message: FromEngine) -> None:
        life.heard_at = self.supervision.clock()
        if isinstance(message, Ready):
            life.ready_at = life.heard_at
            self._was_ready = True
            if message.host_memory is not None:
                line = memory_line(message.host_memory)
                structlog.get_logger().info(line, engine=self.client.name)
        elif isinstance(message, Failed):
            life.error, life.permanent = message.message, message.permanent
        self.client.receive(message)

    async def _watch(
        self, process: Process, moving: asyncio.Task[None], link: EngineLink, life: _Life
    ) -> str:
        """Why the process has to be, or is, at its end."""
        exited = asyncio.ensure_future(process.wait())
        stopping = asyncio.ensure_future(self._stopping.wait())
        try:
            while True:
                await asyncio.wait(
                    {exited, stopping, moving},
                    timeout=self.supervision.poll_s,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if stopping.done():
                    link.send(Shutdown())
                    await end(process, self.supervision.stop_s)
                    return "the agent is stopping"
                if exited.done():
                    return _ended(life, exited.result())
                if moving.done():
                    life.error = f"the engine's link failed: {moving.exception()!r}"
                    return life.error
                silent_s = self.supervision.clock() - life.heard_at
                if self.supervision.watchdog.overdue(silent_s, ready=life.ready_at is not None):
                    return f"the engine sent nothing for {silent_s:.0f} s"
        finally:
            exited.cancel()
            stopping.cancel()

    def _log(self, event: str, **fields: object) -> None:
        structlog.get_logger().warning(event, engine=self.client.name, **fields)


def _ended(life: _Life, returncode: int) -> str:
    """The end of a process by itself, in words."""
    reason = f"the engine {ended_how(returncode)}"
    if -returncode in FAULTS:
        life.error = reason
    return reason
