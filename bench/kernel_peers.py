"""What the kernel is compared with on the same shape: three passes in C, torch's SDPA, and vLLM's
CPU attention in an environment of its own.

Each gives the GB/s of the shape's first rows, in calls of as many as the kernel has.
"""

from __future__ import annotations

import ctypes
import itertools
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from asked import Asked, PeerFailedError
from kernel_shapes import KV_BYTES, Lengths, Shape
from together import on_cores

SOURCE = Path(__file__).with_name("neo_like.c")
FLAGS = ["-O3", "-march=native", "-ffast-math", "-fPIC"]
BLOCK = 16
VLLM_ATTENTION = Path(__file__).parent / "peers/vllm_attention.py"


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

    def sides(self, count: int) -> list[npt.NDArray[np.uint16]]:
        """So many elements of K and of V."""
        if count > self._sides[0].size:
            room = max(count, KV_BYTES // 3)  # for most shapes at once
            random = np.random.default_rng(0)
            some = random.standard_normal(1 << 20, np.float32).view(np.uint32) >> 16
            self._sides = [np.resize(some.astype(np.uint16), room) for _ in "kv"]
        return [side[:count] for side in self._sides]


class NeoLike:
    """The compiled peer; ctypes lets go of the GIL while it runs."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory()
        built = Path(self._directory.name) / "neo_like.o"
        library = built.with_suffix(".so")
        make = ["gcc", *FLAGS, "-c", str(SOURCE), "-o", str(built)]
        subprocess.run(make, check=True, timeout=60)
        # Linked with -ffast-math, loading it would make the whole process lose subnormal numbers.
        link = ["gcc", "-shared", str(built), "-o", str(library), "-lm"]
        subprocess.run(link, check=True, timeout=60)
        self.run = ctypes.CDLL(str(library)).neo_like
        self.memory = Memory()

    def close(self) -> None:
        """Removes the build."""
        self._directory.cleanup()


class NeoProblem:
    """Rows of one shape in the peer's own layout, bfloat16. It knows one token a row only."""

    def __init__(self, neo: NeoLike, shape: Shape) -> None:
        self._neo, self._shape = neo, shape
        blocks = [-(-(context + 1) // BLOCK) for context in shape.contexts]
        order = np.random.default_rng(0).permutation(sum(blocks)).astype(np.int32)
        tables = np.split(order, list(itertools.accumulate(blocks))[:-1])
        tile = shape.kv_heads * BLOCK * shape.head_size
        self._kv = neo.memory.sides(sum(blocks) * tile)
        self._keep: list[npt.NDArray[Any]] = [*tables]
        self._rows = [
            self._row(table, context + 1)
            for table, context in zip(tables, shape.contexts, strict=True)
        ]

    def _row(self, table: npt.NDArray[np.int32], tokens: int) -> NeoRow:
        shape, random = self._shape, np.random.default_rng(0)
        heads = shape.kv_heads * shape.group
        q = random.standard_normal((heads, shape.head_size)).astype(np.float32)
        o, scores = np.zeros_like(q), np.zeros((heads, tokens), np.float32)
        self._keep += [q, o, scores]
        sizes = (tokens, shape.kv_heads, shape.group, shape.head_size, shape.head_size**-0.5)
        rest = [array.ctypes.data for array in (q, o, scores)]
        return NeoRow(*(side.ctypes.data for side in self._kv), table.ctypes.data, *sizes, *rest)

    def gbps(self, pool: ThreadPoolExecutor, rows: int) -> float:
        """The rows of a call are shared out over the pool's threads."""
        begin = time.perf_counter()
        for first in range(0, rows, self._shape.rows):
            chosen = self._rows[first : min(rows, first + self._shape.rows)]
            list(pool.map(lambda row: self._neo.run(ctypes.byref(row)), chosen))
        return self._shape.bytes_of_first(rows) / (time.perf_counter() - begin) / 1e9


class TorchProblem:
    """SDPA over gathered KV: rows of equal length in one call, which flatters it, others one by
    one."""

    def __init__(self, memory: Memory, shape: Shape) -> None:
        self._shape = shape
        a_call = shape.rows if shape.lengths is Lengths.ALIKE else 1
        tokens = [context + shape.q_len for context in shape.contexts[::a_call]]
        width, heads = shape.kv_heads * shape.head_size, shape.kv_heads * shape.group
        sides = memory.sides(a_call * sum(tokens) * width)
        ends = list(itertools.accumulate(a_call * count * width for count in tokens))
        self._calls = []
        for end, count in zip(ends, tokens, strict=True):
            size = (a_call, shape.kv_heads, count, shape.head_size)
            own = (side[end - a_call * count * width : end].reshape(size) for side in sides)
            k, v = (torch.from_numpy(side).view(torch.bfloat16) for side in own)
            q = torch.randn((a_call, heads, shape.q_len, shape.head_size), dtype=torch.bfloat16)
            self._calls.append((q, k, v))
        self._mask = causal(shape.q_len, tokens[0]) if shape.q_len > 1 else None

    def gbps(self, cores: list[int], rows: int) -> float:
        """On so many cores."""
        attend = torch.nn.functional.scaled_dot_product_attention
        left = rows
        with on_cores(cores):
            torch.set_num_threads(len(cores))
            begin = time.perf_counter()
            for call in self._calls:
                q, k, v = (side[:left] for side in call)
                attend(q, k, v, attn_mask=self._mask, enable_gqa=True)
                left -= len(q)
                if left <= 0:
                    break
            taken = time.perf_counter() - begin
        return self._shape.bytes_of_first(rows) / taken / 1e9


def causal(queries: int, tokens: int) -> torch.Tensor:
    """What SDPA adds to the scores of the last queries."""
    places = torch.arange(tokens - queries, tokens)[:, None]
    hidden = torch.arange(tokens)[None] > places
    return torch.zeros(hidden.shape, dtype=torch.bfloat16).masked_fill(hidden, -torch.inf)


class VllmAttention:
    """vLLM's attention in its own process on `cores`, a thread each or one alone."""

    def __init__(self, python: Path, cores: list[int], log: Path) -> None:
        openmp = python.parents[1] / "lib/libiomp5.so"
        settings = {
            "OMP_NUM_THREADS": str(len(cores)),
            "KMP_BLOCKTIME": "0",  # between its turns it must not spin
            "VLLM_LOGGING_LEVEL": "WARNING",
            "PYTHONPATH": "",  # this source tree is not the peer's
        }
        if openmp.exists():
            settings["LD_PRELOAD"] = str(openmp)
        command = [str(python), "-P", str(VLLM_ATTENTION)]
        self._process = Asked("vLLM", command, cores, settings, log)
        self._shape: Shape | None = None

    def prepare(self, shape: Shape) -> None:
        """Fills a shape. Raises PeerFailedError, also when what it computes is wrong."""
        names = ("group", "kv_heads", "head_size", "q_len")
        sizes: dict[str, Any] = {name: getattr(shape, name) for name in names}
        sizes["tokens"] = [context + shape.q_len for context in shape.contexts]
        self._process.ask({"shape": sizes | {"call_rows": shape.rows}})
        self._shape = shape

    def gbps(self, threads: int, rows: int) -> float:
        """Of the shape that was prepared."""
        if self._shape is None:
            raise PeerFailedError("vLLM has no shape; call prepare first")
        answer = self._process.ask({"threads": threads, "rows": rows})
        return self._shape.bytes_of_first(rows) / float(answer["seconds"]) / 1e9

    def close(self) -> None:
        """Ends the process."""
        self._process.close()
