"""What the kernel is compared with on the same shape: three passes in C, torch's SDPA, and vLLM's
CPU attention in an environment of its own."""

from __future__ import annotations

import ctypes
import json
import math
import os
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from kernel_shapes import KV_BYTES

SOURCE = Path(__file__).with_name("neo_like.c")
FLAGS = ["-O3", "-march=native", "-ffast-math", "-shared", "-fPIC"]
BLOCK = 16
VLLM_ATTENTION = Path(__file__).parent / "peers/vllm_attention.py"


class PeerFailedError(Exception):
    """A peer could not be started or gave no answer; one line for the result file."""


class NeoRow(ctypes.Structure):
    """`neo_row` of neo_like.c."""

    _fields_ = (
        ("k", ctypes.c_void_p),
        ("v", ctypes.c_void_p),
        ("table", ctypes.c_void_p),
        ("tokens", ctypes.c_int32),
        ("kv_heads", ctypes.c_int32),
        ("group", ctypes.c_int32),
        ("head_size", ctypes.c_int32),
        ("scale", ctypes.c_float),
        ("q", ctypes.c_void_p),
        ("o", ctypes.c_void_p),
        ("scores", ctypes.c_void_p),
    )


class Memory:
    """Random bfloat16 K and V that every shape of a peer looks at in a layout of its own; time does
    not depend on the values."""

    def __init__(self) -> None:
        self._sides = [np.zeros(0, np.uint16) for _ in "kv"]

    def views(self, *sizes: int) -> list[npt.NDArray[np.uint16]]:
        """K and V of that shape."""
        count = math.prod(sizes)
        if count > self._sides[0].size:
            count = max(count, KV_BYTES // 3)  # room for most shapes at once
            random = np.random.default_rng(0)
            some = random.standard_normal(1 << 20, np.float32).view(np.uint32) >> 16
            self._sides = [np.resize(some.astype(np.uint16), count) for _ in "kv"]
        return [side[: math.prod(sizes)].reshape(sizes) for side in self._sides]


class NeoLike:
    """The compiled peer; ctypes lets go of the GIL while it runs."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory()
        library = Path(self._directory.name) / "neo_like.so"
        command = ["gcc", *FLAGS, str(SOURCE), "-o", str(library), "-lm"]
        subprocess.run(command, check=True, timeout=60)
        self.run = ctypes.CDLL(str(library)).neo_like
        self.memory = Memory()

    def close(self) -> None:
        """Removes the build."""
        self._directory.cleanup()


class NeoProblem:
    """Rows of one shape in the peer's own layout, `tokens` each, bfloat16."""

    def __init__(
        self, neo: NeoLike, group: int, kv_heads: int, head_size: int, tokens: int, rows: int
    ) -> None:
        random = np.random.default_rng(0)
        per_row = -(-tokens // BLOCK)
        self._kv = neo.memory.views(per_row * rows, kv_heads, BLOCK, head_size)
        self._tables = random.permutation(per_row * rows).astype(np.int32).reshape(rows, per_row)
        self._neo = neo
        self._rows: list[NeoRow] = []
        self._keep: list[npt.NDArray[Any]] = []
        for table in self._tables:
            q = random.standard_normal((kv_heads * group, head_size)).astype(np.float32)
            o, scores = np.zeros_like(q), np.zeros((kv_heads * group, tokens), np.float32)
            self._keep += [q, o, scores]
            sides = [side.ctypes.data for side in self._kv]
            sizes = (tokens, kv_heads, group, head_size, head_size**-0.5)
            rest = [array.ctypes.data for array in (q, o, scores)]
            self._rows.append(NeoRow(*sides, table.ctypes.data, *sizes, *rest))
        self._row_bytes = tokens * kv_heads * head_size * 4

    def gbps(self, pool: ThreadPoolExecutor, rows: int) -> float:
        """Of one call for each of so many rows, shared out over the pool's threads."""
        begin = time.perf_counter()
        list(pool.map(lambda row: self._neo.run(ctypes.byref(row)), self._rows[:rows]))
        return rows * self._row_bytes / (time.perf_counter() - begin) / 1e9


class TorchProblem:
    """SDPA over gathered KV, all rows of equal length in one call, which flatters it."""

    def __init__(
        self, memory: Memory, group: int, kv_heads: int, head_size: int, tokens: int, rows: int
    ) -> None:
        views = memory.views(rows, kv_heads, tokens, head_size)
        self._k, self._v = (torch.from_numpy(view).view(torch.bfloat16) for view in views)
        self._q = torch.randn((rows, kv_heads * group, 1, head_size), dtype=torch.bfloat16)
        self._row_bytes = 2 * self._k[0].numel() * 2

    def gbps(self, cores: list[int], rows: int) -> float:
        """Of one call over so many rows. torch's threads stay where they were born, so all cores
        are open to them."""
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, cores)
        torch.set_num_threads(len(cores))
        begin = time.perf_counter()
        q, k, v = (side[:rows] for side in (self._q, self._k, self._v))
        torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        taken = time.perf_counter() - begin
        os.sched_setaffinity(0, before)
        return rows * self._row_bytes / taken / 1e9


class VllmAttention:
    """vLLM's decode attention in its own process on `cores`, a thread each or one alone."""

    def __init__(self, python: Path, cores: list[int], log: Path) -> None:
        self._log = log.open("w")
        openmp = python.parents[1] / "lib/libiomp5.so"
        settings = {
            "OMP_NUM_THREADS": str(len(cores)),
            "KMP_BLOCKTIME": "0",  # between its turns it must not spin
            "VLLM_LOGGING_LEVEL": "WARNING",
            "PYTHONPATH": "",  # this source tree is not the peer's
        }
        if openmp.exists():
            settings["LD_PRELOAD"] = str(openmp)
        self._process = subprocess.Popen(
            ["taskset", "-c", ",".join(map(str, cores)), str(python), "-P", str(VLLM_ATTENTION)],
            env=os.environ | settings,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def prepare(self, group: int, kv_heads: int, head_size: int, tokens: int, rows: int) -> None:
        """Fills a shape. Raises PeerFailedError, also when what it computes is wrong."""
        names = {"group": group, "kv_heads": kv_heads, "head_size": head_size}
        self._ask(names | {"tokens": tokens, "rows": rows})
        self._row_bytes = tokens * kv_heads * head_size * 4

    def gbps(self, threads: int, rows: int) -> float:
        """Of one call over so many rows of the shape."""
        answer = self._ask({"threads": threads, "rows": rows})
        return rows * self._row_bytes / float(answer["seconds"]) / 1e9

    def _ask(self, what: dict[str, int]) -> dict[str, Any]:
        streams = self._process.stdin, self._process.stdout
        if streams[0] is None or streams[1] is None:
            raise PeerFailedError("vLLM's process has no pipes")
        try:
            print(json.dumps(what), file=streams[0], flush=True)
            answer: dict[str, Any] = json.loads(streams[1].readline())
        except (OSError, ValueError):
            raise PeerFailedError(
                f"vLLM's process ended; its words are in {self._log.name}"
            ) from None
        if "error" in answer:
            raise PeerFailedError(f"vLLM: {answer['error']}")
        return answer

    def close(self) -> None:
        """Ends the process."""
        if self._process.stdin:
            self._process.stdin.close()
        self._process.wait(timeout=30)
        self._log.close()
