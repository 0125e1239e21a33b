"""A shape's KV and calls of the kernel over it, for `make bench-kernel`."""

from __future__ import annotations

import time
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from kernel_shapes import Shape
from omniserve_native import Arena, ArenaConfig, AttendCall, DType, Workers

Sides = dict[int, Workers | None]
STORAGE = {DType.F32: np.float32, DType.BF16: np.uint16, DType.F16: np.float16}


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
    """A shape's arena, filled; every row has the same KV at blocks of its own, in random order.
    `sides`: by number of threads, the workers beside the caller."""

    def __init__(self, shape: Shape, sides: Sides, seed: int) -> None:
        self.shape = shape
        random = np.random.default_rng(seed)
        per_row = -(-(shape.context + shape.q_len) // 16)
        blocks = -(-per_row // 8) * 8 * shape.rows
        heads = (shape.kv_heads, shape.head_size)
        config = ArenaConfig(1, *heads, blocks, shape.rows, per_row, shape.dtype)
        self.arena = Arena(config)
        self.arena.prefault()
        tokens = shape.context + shape.q_len
        draw = [random.standard_normal((tokens, *heads), np.float32) for _ in "kv"]
        self.k, self.v = (encode(values, shape.row_dtype) for values in draw)
        runs = -(-per_row // 8)  # the engine's pool gives out blocks in runs of eight
        order = random.permutation(runs * shape.rows)
        table = (order[:, None] * 8 + np.arange(8)).reshape(shape.rows, -1)
        for row in np.ascontiguousarray(table[:, :per_row], np.int32):
            sequence = self.arena.open_sequence()
            self.arena.set_blocks(sequence, 0, row)
            addresses = self.k.ctypes.data, self.v.ctypes.data
            self.arena.append(sequence, 0, 0, tokens, *addresses, dtype=shape.row_dtype)
        size = (shape.rows * shape.q_len, shape.kv_heads * shape.group, shape.head_size)
        self.q = encode(random.standard_normal(size, np.float32), shape.row_dtype)
        self.o = np.zeros_like(self.q)
        self.scale = shape.head_size**-0.5
        self.calls = {threads: self._call(workers) for threads, workers in sides.items()}

    def _call(self, workers: Workers | None) -> AttendCall:
        shape = self.shape
        q_heads = shape.kv_heads * shape.group
        call = AttendCall(self.arena, q_heads, shape.row_dtype, self.scale, shape.rows, workers)
        rows = np.arange(shape.rows, dtype=np.int32)
        call.set_segments(rows, np.full_like(rows, shape.q_len), np.array(shape.contexts, np.int32))
        width = shape.kv_heads * shape.head_size
        call.set_strides(width * shape.group, width, width, width * shape.group)
        return call

    def gbps(self, threads: int) -> float:
        """Of one call over all rows."""
        begin = time.perf_counter()
        self.calls[threads].run(0, self.q.ctypes.data, 0, 0, self.o.ctypes.data)
        return self.shape.total_bytes / (time.perf_counter() - begin) / 1e9

    @cached_property
    def right(self) -> npt.NDArray[np.float64]:
        """The last row's last query in float64, over what was appended."""
        shape = self.shape
        tokens = shape.contexts[-1] + shape.q_len
        k, v = (decode(side[:tokens], shape.row_dtype) for side in (self.k, self.v))
        k, v = k.transpose(1, 2, 0), v.transpose(1, 0, 2)  # [kv head], then dims or tokens
        q = decode(self.q[-1], shape.row_dtype).reshape(shape.kv_heads, shape.group, -1)
        scores = self.scale * q @ k
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        values: npt.NDArray[np.float64] = weights @ v
        return values.reshape(self.o[-1].shape)

    def max_error(self) -> float:
        """Of that query, over max |V|; for int8 the quantisation's error is part of it."""
        tokens = self.shape.contexts[-1] + self.shape.q_len
        largest = np.abs(decode(self.v[:tokens], self.shape.row_dtype)).max()
        return float(np.abs(decode(self.o[-1], self.shape.row_dtype) - self.right).max() / largest)
