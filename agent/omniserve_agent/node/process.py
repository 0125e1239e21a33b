"""Child processes: own process group, death with the parent, a bounded end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Collection, Mapping, Sequence

from omniserve_agent.node import child

_KILL_WAIT_S = 10.0


async def spawn(
    program: Sequence[str],
    *,
    cores: Collection[int] = (),
    stdout: int | None = None,
    stderr: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> Process:
    """Start `program` in its own process group, so that the terminal's SIGINT does not reach it.

    Not in its own session: the kernel weighs sessions against each other (autogroup), so that
    priorities within one count for nothing against another, and HTTP may share the workers' cores.

    `cores` is its core mask; empty: inherited. Output is inherited unless a pipe is asked for, and
    `environment` is added to what is inherited.
    """
    mask = ",".join(str(core) for core in sorted(cores))
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-S", child.__file__, str(os.getpid()), mask, *program),
        stdin=DEVNULL,
        stdout=stdout,
        stderr=stderr,
        process_group=0,
        env={**os.environ, **(environment or {})},
    )


async def end(process: Process, patience_s: float = 0.0) -> None:
    """Wait `patience_s` for the process to end, then kill it with everything in its group."""
    if process.returncode is None and patience_s > 0:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), patience_s)
    if process.returncode is not None:
        return  # its number may be another process's by now
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await asyncio.wait_for(process.wait(), _KILL_WAIT_S)


def ended_how(returncode: int) -> str:
    """An exit status in words."""
    if returncode >= 0:
        return f"exited with code {returncode}"
    return f"was killed by {signal.Signals(-returncode).name}"
