"""What the kernel is compared with on the same shape: three passes in C, and torch's SDPA."""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

SOURCE = Path(__file__).with_name("neo_like.c")
FLAGS = ["-O3", "-march=native", "-ffast-math", "-shared", "-fPIC"]
BLOCK = 16
NO_VLLM = (
    "not measured: vLLM's CPU decode attention is reachable only inside its own process and build; "
    "a harness for it is missing"
)


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


class NeoLike:
    """The compiled peer; ctypes lets go of the GIL while it runs."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory()
        library = Path(self._directory.name) / "neo_like.so"
        command = ["gcc", *FLAGS, str(SOURCE), "-o", str(library), "-lm"]
        subprocess.run(command, check=True, timeout=60)
        self.run = ctypes.CDLL(str(library)).neo_like

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
        shape = (per_row * rows, kv_heads, BLOCK, head_size)
        self._kv = [
            (random.standard_normal(shape, np.float32).view(np.uint32) >> 16).astype(np.uint16)
            for _ in "kv"
        ]
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
        self._bytes = rows * tokens * kv_heads * head_size * 4

    def gbps(self, pool: ThreadPoolExecutor) -> float:
        """Of one call per row, shared out over the pool's threads."""
        begin = time.perf_counter()
        list(pool.map(lambda row: self._neo.run(ctypes.byref(row)), self._rows))
        return self._bytes / (time.perf_counter() - begin) / 1e9


class TorchProblem:
    """SDPA over gathered KV, all rows of equal length in one call, which flatters it."""

    def __init__(self, group: int, kv_heads: int, head_size: int, tokens: int, rows: int) -> None:
        shape = (rows, kv_heads, tokens, head_size)
        self._k, self._v = (torch.randn(shape, dtype=torch.bfloat16) for _ in "kv")
        self._q = torch.randn((rows, kv_heads * group, 1, head_size), dtype=torch.bfloat16)
        self._bytes = 2 * self._k.numel() * 2

    def gbps(self, threads: int) -> float:
        """Of one call."""
        torch.set_num_threads(threads)
        begin = time.perf_counter()
        torch.nn.functional.scaled_dot_product_attention(self._q, self._k, self._v, enable_gqa=True)
        return self._bytes / (time.perf_counter() - begin) / 1e9
