"""Threads pinned to cores that measure something in C at the same time (together.h)."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self


@contextlib.contextmanager
def on_cores(cores: list[int]) -> Iterator[None]:
    """The calling thread there. Threads of a library stay where they were born, with the cores that
    were open to them then."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Work(ctypes.Structure):
    """`together` of together.h."""

    _fields_ = (
        ("threads", ctypes.c_int64),
        ("chunks", ctypes.c_int64),
        ("ready", ctypes.c_int64),
        ("next", ctypes.c_int64),
    )


class Team:
    """A pinned thread a core, in the order of `cores`, and what was compiled for them."""

    def __init__(self, cores: list[int]) -> None:
        self.cores = cores
        self._directory = tempfile.TemporaryDirectory()
        self._pools = [ThreadPoolExecutor(1) for _ in cores]
        self.each(lambda i: os.sched_setaffinity(0, {cores[i]}), len(cores))

    def compiled(self, source: Path, flags: Sequence[str]) -> ctypes.CDLL:
        """The C file as a library; ctypes lets go of the GIL while it runs."""
        library = Path(tempfile.mkdtemp(dir=self._directory.name)) / f"{source.stem}.so"
        command = ["gcc", "-O3", *flags, "-shared", "-fPIC", str(source), "-o", str(library)]
        subprocess.run(command, check=True, timeout=60)
        return ctypes.CDLL(str(library))

    def each(self, function: Callable[[int], Any], threads: int) -> list[Any]:
        """`function` of 0, 1, ... on so many threads at once."""
        started = [pool.submit(function, i) for i, pool in enumerate(self._pools[:threads])]
        return [one.result() for one in started]

    def seconds(
        self, function: Callable[..., object], threads: int, chunks: int, *arguments: object
    ) -> float:
        """From the first thread's begin to the last one's end, of so many chunks altogether."""
        work = Work(threads, chunks, 0, 0)
        times = [(ctypes.c_int64 * 2)() for _ in range(threads)]
        self.each(lambda i: function(ctypes.byref(work), times[i], *arguments), threads)
        return (max(end for _, end in times) - min(begin for begin, _ in times)) / 1e9

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        for pool in self._pools:
            pool.shutdown()
        self._directory.cleanup()
