"""Keeps a virtual machine's cores awake, and tells how much of them its host took.

A virtual core that sleeps gives its physical one back, and gets it again when the host's scheduler
pleases: 3 to 4 ms later on a busy host, amid every iteration of a device that is waited for. So a
process of policy SCHED_IDLE spins on each core while something is measured: whatever else wants to
run preempts it at once, if it is of the same session (the kernel weighs sessions against each
other, so servers must not be started in their own). All sides of a comparison are measured so.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence

import psutil

SPIN = """
import os, sys
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
os.sched_setaffinity(0, {int(sys.argv[1])})
parent = os.getppid()
while os.getppid() == parent:
    for _ in range(1_000_000):
        pass
"""


@contextlib.contextmanager
def awake(cores: Sequence[int]) -> Iterator[None]:
    """While the block runs, no core of these sleeps."""
    spinning = [subprocess.Popen([sys.executable, "-c", SPIN, str(core)]) for core in cores]
    try:
        yield
    finally:
        for process in spinning:
            process.kill()
        for process in spinning:
            process.wait()


def stolen_s() -> float:
    """Seconds since boot that the host of this virtual machine took from cores that had work."""
    return float(getattr(psutil.cpu_times(), "steal", 0.0))


def stolen_share(before_s: float, seconds: float) -> float:
    """Of all cores' time, since `stolen_s` was `before_s`, `seconds` ago."""
    return (stolen_s() - before_s) / (seconds * (os.cpu_count() or 1))
