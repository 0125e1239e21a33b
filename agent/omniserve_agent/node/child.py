"""Starts a program that dies with its parent: `child.py PARENT_PID CORES PROGRAM ARG...`.

Run as a script, with the standard library only. A function between fork and exec would do the same
but is unsafe in a process with threads.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import NoReturn

_PR_SET_PDEATHSIG = 1
_CANNOT_START = 2


def main(arguments: list[str]) -> None:
    """Arrange for SIGKILL at the parent's death, widen the core mask to CORES, become PROGRAM."""
    parent, cores, *program = arguments
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        sys.exit(f"prctl(PR_SET_PDEATHSIG): {os.strerror(ctypes.get_errno())}")
    if os.getppid() != int(parent):
        sys.exit(f"the parent {parent} is gone")  # it died before the signal was arranged
    try:
        if cores:
            os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    except OSError as error:
        allowed = sorted(os.sched_getaffinity(0))
        _refuse(f"cores {cores}: {error.strerror}; this process may use {allowed}")
    try:
        os.execv(program[0], program)
    except OSError as error:
        _refuse(f"{program[0]}: {error.strerror}")


def _refuse(line: str) -> NoReturn:
    """No further try would help."""
    sys.stderr.write(f"omniserve-agent: {line}\n")
    sys.exit(_CANNOT_START)


if __name__ == "__main__":
    main(sys.argv[1:])
