"""OpenAI servers as child processes, pinned to cores."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

START_TIMEOUT_S = 600.0
STOP_TIMEOUT_S = 30.0
READY_TIMEOUT_S = 60.0


class ServerError(Exception):
    """A server did not start; one line for the user."""


@dataclass(frozen=True)
class Program:
    """How to start a server on a port."""

    name: str
    command: Sequence[str]  # the port is appended
    model: str  # the OpenAI `model` value
    ready_path: str
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Server:
    """A running server."""

    program: Program
    url: str
    process: subprocess.Popen[bytes]

    @property
    def model(self) -> str:
        """The OpenAI `model` value."""
        return self.program.model

    def idle_cores(self, seconds: float = 2.0) -> float:
        """How many cores its processes keep busy while nobody asks anything."""
        before = self._cpu_s()
        time.sleep(seconds)
        return (self._cpu_s() - before) / seconds

    def _cpu_s(self) -> float:
        root = psutil.Process(self.process.pid)
        spent = [process.cpu_times() for process in (root, *root.children(recursive=True))]
        return float(sum(times.user + times.system for times in spent))


def omniserve(name: str, manifest: Path, flags: Sequence[str]) -> Program:
    """The agent, from this source tree, with the interpreter that runs the benchmark."""
    command = [sys.executable, "-m", "omniserve_agent", "serve", "-f", str(manifest), *flags]
    return Program(name, [*command, "--log-level", "warning", "--port"], "chat", "/readyz")


@contextlib.contextmanager
def running(program: Program, cores: Sequence[int], log_dir: Path) -> Iterator[Server]:
    """Start it on `cores`, wait until it answers, stop it at the end. Raises ServerError."""
    log_dir.mkdir(parents=True, exist_ok=True)
    log = log_dir / f"{program.name}.log"
    port = _free_port()
    pinned = ["taskset", "-c", ",".join(map(str, cores)), *program.command, str(port)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            pinned,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **program.environment},
            process_group=0,  # of this session: the scheduler weighs sessions against each other
        )
    try:
        server = Server(program, f"http://127.0.0.1:{port}", process)
        _wait_ready(server, log)
        yield server
    finally:
        _stop(process)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_ready(server: Server, log: Path) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s:
        if server.process.poll() is not None:
            break
        if _answers(server.url + server.program.ready_path):
            return
        time.sleep(0.5)
    code = server.process.poll()
    state = f"ended with code {code}" if code is not None else f"not ready in {START_TIMEOUT_S} s"
    raise ServerError(f"{server.program.name}: {state}; see {log}")


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=READY_TIMEOUT_S):
            return True
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, then SIGKILL for what is left of its own process group."""
    process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_TIMEOUT_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(STOP_TIMEOUT_S)
