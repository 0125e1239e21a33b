"""A shape's KV and calls of the kernel over it, for `make bench-kernel`."""

from __future__ import annotations

import time
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

from kernel_shapes import Shape
from omniserve_native import Arena, ArenaConfig, AttendCall, DType, Workers

Sides = dict[int, Workers | None]
STORAGE = {DType.F32: np.float32, DType.BF16: np.uint16, DType.F16: np.float16}
BLOCK, RUN = 16, 8  # tokens; blocks that the engine's pool gives out together


def encode(values: npt.NDArray[np.float32], dtype: DType) -> npt.NDArray[Any]:
    """As stored; bf16 by cutting off (the inputs are random anyway)."""
    if dtype is DType.BF16:
        return (np.ascontiguousarray(values).view(np.uint32) >> 16).astype(np.uint16)
    return np.ascontiguousarray(values, STORAGE[dtype])


def decode(raw: npt.NDArray[Any], dtype: DType) -> npt.NDArray[np.float64]:
    """The values that were stored."""
    if dtype is DType.BF16:
        return (raw.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return raw.astype(np.float64)


class Problem:
    """A shape's arena, filled; every row has the first of the same tokens, at blocks of its own in
    random order. `sides`: by number of threads, the workers beside the caller."""

    def __init__(self, shape: Shape, sides: Sides, seed: int) -> None:
        self.shape = shape
        random = np.random.default_rng(seed)
        tokens = [context + shape.q_len for context in shape.contexts]
        heads = (shape.kv_heads, shape.head_size)
        draw = [random.standard_normal((max(tokens), *heads), np.float32) for _ in "kv"]
        self.k, self.v = (encode(values, shape.row_dtype) for values in draw)
        self.arena = self._fill(tokens, random)
        size = (len(tokens) * shape.q_len, shape.kv_heads * shape.group, shape.head_size)
        self.q = encode(random.standard_normal(size, np.float32), shape.row_dtype)
        self.o = np.zeros_like(self.q)
        self.scale = shape.head_size**-0.5
        self.calls = {threads: self._calls(workers) for threads, workers in sides.items()}

    def _fill(self, tokens: list[int], random: np.random.Generator) -> Arena:
        """Rows of so many tokens each."""
        shape = self.shape
        runs = [-(-count // (BLOCK * RUN)) for count in tokens]
        size = (RUN * sum(runs), len(tokens), RUN * max(runs), shape.dtype)
        arena = Arena(ArenaConfig(1, shape.kv_heads, shape.head_size, *size))
        arena.prefault()
        order = random.permutation(sum(runs))
        addresses = self.k.ctypes.data, self.v.ctypes.data
        for count, end, length in zip(runs, accumulate(runs), tokens, strict=True):
            table = (order[end - count : end, None] * RUN + np.arange(RUN)).reshape(-1)
            sequence = arena.open_sequence()
            blocks = np.ascontiguousarray(table[: -(-length // BLOCK)], np.int32)
            arena.set_blocks(sequence, 0, blocks)
            arena.append(sequence, 0, 0, length, *addresses, dtype=shape.row_dtype)
        return arena

    def _calls(self, workers: Workers | None) -> list[AttendCall]:
        shape = self.shape
        width = shape.kv_heads * shape.head_size
        start = np.array(shape.call_contexts, np.int64)
        calls = []
        for first in range(0, len(shape.contexts), shape.rows):
            rows = np.arange(first, first + shape.rows, dtype=np.int32)
            q_heads = shape.kv_heads * shape.group
            call = AttendCall(self.arena, q_heads, shape.row_dtype, self.scale, len(rows), workers)
            call.set_segments(rows, np.full_like(rows, shape.q_len), start)
            call.set_strides(width * shape.group, width, width, width * shape.group)
            calls.append(call)
        return calls

    def gbps(self, threads: int) -> float:
        """Of all calls."""
        rows = self.shape.rows * self.shape.q_len
        step = rows * self.q[0].nbytes
        places = [
            (call, self.q.ctypes.data + i * step, self.o.ctypes.data + i * step)
            for i, call in enumerate(self.calls[threads])
        ]
        begin = time.perf_counter()
        for call, q, o in places:
            call.run(0, q, 0, 0, o)
        return self.shape.total_bytes / (time.perf_counter() - begin) / 1e9

    @cached_property
    def _checked(self) -> int:
        """The row that is checked: the last of the longest."""
        contexts = self.shape.contexts
        return max(range(len(contexts)), key=lambda row: (contexts[row], row))

    @cached_property
    def right(self) -> npt.NDArray[np.float64]:
        """That row's last query in float64, over what was appended."""
        shape = self.shape
        k, v = (decode(side, shape.row_dtype) for side in (self.k, self.v))
        k, v = k.transpose(1, 2, 0), v.transpose(1, 0, 2)  # [kv head], then dims or tokens
        q = self._last_query(self.q).reshape(shape.kv_heads, shape.group, -1)
        scores = self.scale * q @ k
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        values: npt.NDArray[np.float64] = weights @ v
        return values.reshape(self.o[-1].shape)

    def _last_query(self, rows: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        return decode(rows[(self._checked + 1) * self.shape.q_len - 1], self.shape.row_dtype)

    def max_error(self) -> float:
        """Of that query, over max |V|; for int8 the quantisation's error is part of it."""
        largest = np.abs(decode(self.v, self.shape.row_dtype)).max()
        return float(np.abs(self._last_query(self.o) - self.right).max() / largest)
