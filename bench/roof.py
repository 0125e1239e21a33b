"""Read bandwidth by plain vector loads, one core and all."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

SOURCE = Path(__file__).with_name("roof.c")
BUFFER_BYTES = 512 << 20  # per core; far beyond any L3


def _compile(directory: str) -> ctypes.CDLL:
    library = Path(directory) / "roof.so"
    command = ["gcc", "-O3", "-march=native", "-shared", "-fPIC", str(SOURCE), "-o", str(library)]
    subprocess.run(command, check=True, timeout=60)
    return ctypes.CDLL(str(library))


class Roof:
    """A buffer per core, read at once by as many pinned threads as asked for."""

    def __init__(self, cores: list[int]) -> None:
        self.cores = cores
        self._directory = tempfile.TemporaryDirectory()
        self._read = _compile(self._directory.name).roof_read
        self._read.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        self._read.restype = ctypes.c_uint64
        self._pool = ThreadPoolExecutor(len(cores))
        self._buffers = list(self._pool.map(self._make_buffer, cores))

    def _make_buffer(self, core: int) -> mmap.mmap:
        os.sched_setaffinity(0, {core})  # first touch where it is read
        buffer = mmap.mmap(-1, BUFFER_BYTES)
        buffer.madvise(mmap.MADV_HUGEPAGE)
        for at in range(0, BUFFER_BYTES, mmap.PAGESIZE):
            buffer[at] = 1
        return buffer

    def _pass(self, index: int) -> None:
        os.sched_setaffinity(0, {self.cores[index]})
        view = (ctypes.c_char * BUFFER_BYTES).from_buffer(self._buffers[index])
        self._read(ctypes.addressof(view), BUFFER_BYTES)

    def gbps(self, threads: int) -> float:
        """GB/s of one pass over each thread's buffer."""
        begin = time.perf_counter()
        list(self._pool.map(self._pass, range(threads)))
        return threads * BUFFER_BYTES / (time.perf_counter() - begin) / 1e9

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool.shutdown()
        self._directory.cleanup()
