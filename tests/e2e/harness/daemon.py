"""A background program: its log is kept, its end is certain."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

STOP_TIMEOUT_S = 20
LOG_TAIL_BYTES = 4000


class DaemonDiedError(Exception):
    """A program ended while it was needed; the message holds the end of its log."""


class Daemon:
    """One program in a process group of its own."""

    def __init__(
        self, name: str, argv: Sequence[str], folder: Path, env: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self._argv = list(argv)
        self._log_path = folder / f"{name}.log"
        self._env = dict(os.environ) | dict(env or {})
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it; its log is appended to."""
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self._argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._env,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Of the running program."""
        if self._process is None:
            raise DaemonDiedError(f"{self.name} is not running")
        return self._process.pid

    def require_alive(self) -> None:
        """Raises DaemonDiedError when it ended by itself."""
        if self._process is not None and self._process.poll() is not None:
            raise DaemonDiedError(
                f"{self.name} ended ({self._process.returncode}): {self.log_tail()}"
            )

    def stop(self) -> None:
        """SIGTERM, then SIGKILL for its whole group; safe to call twice."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_TIMEOUT_S)
        _kill_group(process.pid)
        process.wait(STOP_TIMEOUT_S)

    def kill(self) -> None:
        """SIGKILL at once."""
        process, self._process = self._process, None
        if process is not None:
            _kill_group(process.pid)
            process.wait(STOP_TIMEOUT_S)

    def log_tail(self) -> str:
        """The end of its log."""
        if not self._log_path.exists():
            return "(no log)"
        return self._log_path.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace")


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
