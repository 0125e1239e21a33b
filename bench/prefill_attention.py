"""A prefill chunk's attention on the CPU device: arithmetic per second beside plain matrix products
of the same rows, and its share of a layer's time. SmolLM2-135M's shape.
`bench/out/prefill_attention.json`.

Multiplications and additions that the causal mask leaves are counted. torch has its KV contiguous,
its heads expanded and its mask built beforehand.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import report
from omniserve_native import (
    Arena,
    ArenaConfig,
    AttendCall,
    DenseLayer,
    DenseLinear,
    DenseScratch,
    DenseShape,
    DenseWeights,
    DType,
    Weight,
    Workers,
)

Q_HEADS, KV_HEADS, SIZE, HIDDEN, INNER = 9, 3, 64, 576, 1536
CHUNKS, CONTEXTS = (256, 512), (0, 1024, 4096)
BLOCK = 16
Run = Callable[[], object]


def rows_of(count: int, width: int) -> torch.Tensor:
    """Random bfloat16."""
    return torch.randn(count, width).to(torch.bfloat16)


class Chunk:
    """`rows` tokens behind `context` others, by every side."""

    def __init__(self, rows: int, context: int, helpers: Workers | None) -> None:
        self.rows, self.context, tokens = rows, context, rows + context
        blocks = -(-tokens // BLOCK)
        self.arena = Arena(ArenaConfig(1, KV_HEADS, SIZE, blocks, 1, blocks, DType.BF16))
        self.sequence = self.arena.open_sequence()
        shuffled = np.random.default_rng(0).permutation(blocks).astype(np.int32)
        self.arena.set_blocks(self.sequence, 0, shuffled)
        self.k, self.v = rows_of(tokens, KV_HEADS * SIZE), rows_of(tokens, KV_HEADS * SIZE)
        sides = self.k.data_ptr(), self.v.data_ptr()
        self.arena.append(self.sequence, 0, 0, context, *sides, dtype=DType.BF16)
        self.q, self.o = rows_of(rows, Q_HEADS * SIZE), rows_of(rows, Q_HEADS * SIZE)
        self.call = AttendCall(self.arena, Q_HEADS, DType.BF16, SIZE**-0.5, 1, helpers)
        one = np.array([self.sequence]), np.array([rows]), np.array([context])
        self.call.set_segments(*one)
        self.call.set_strides(Q_HEADS * SIZE, KV_HEADS * SIZE, KV_HEADS * SIZE, Q_HEADS * SIZE)
        self._expand()

    def _expand(self) -> None:
        """torch's view of the same."""
        self.heads = self.q.view(1, self.rows, Q_HEADS, SIZE).transpose(1, 2).contiguous()
        spread = [
            side.view(1, -1, KV_HEADS, SIZE).transpose(1, 2).repeat_interleave(3, 1).contiguous()
            for side in (self.k, self.v)
        ]
        self.keys, self.values = spread
        seen = torch.arange(self.rows + self.context)[None] <= (
            self.context + torch.arange(self.rows)[:, None]
        )
        self.mask = torch.zeros(seen.shape, dtype=torch.bfloat16).masked_fill(~seen, -torch.inf)

    @property
    def operations(self) -> int:
        """Of both products, of what is seen."""
        seen = self.rows * self.context + self.rows * (self.rows + 1) // 2
        return 4 * Q_HEADS * SIZE * seen

    def native(self) -> None:
        """Appends and attends."""
        own = self.context * KV_HEADS * SIZE * 2
        k, v = self.k.data_ptr() + own, self.v.data_ptr() + own
        self.call.run(0, self.q.data_ptr(), k, v, self.o.data_ptr())

    def torch(self) -> torch.Tensor:
        """Attends."""
        attend = torch.nn.functional.scaled_dot_product_attention
        if self.context == 0:
            return attend(self.heads, self.keys, self.values, is_causal=True)
        return attend(self.heads, self.keys, self.values, attn_mask=self.mask)

    def error(self) -> float:
        """Largest difference of the two, over the largest output."""
        self.native()
        right = self.torch().transpose(1, 2).reshape(self.rows, -1).float()
        return float((self.o.float() - right).abs().max() / right.abs().max())


class Dense:
    """The rest of a layer for the same rows, and one plain product in two libraries."""

    def __init__(self, rows: int, helpers: Workers | None) -> None:
        shape = DenseShape(HIDDEN, INNER, Q_HEADS, KV_HEADS, SIZE, 1e-5)
        sizes = {
            "qkv": (shape.qkv_size, HIDDEN),
            "o": (HIDDEN, Q_HEADS * SIZE),
            "gate_up": (2 * INNER, HIDDEN),
            "down": (HIDDEN, INNER),
        }
        self.values = {name: 0.02 * rows_of(*size) for name, size in sizes.items()}
        self.norm = torch.ones(HIDDEN, dtype=torch.bfloat16)
        weights = {name: Weight(value.data_ptr()) for name, value in self.values.items()}
        norm = self.norm.data_ptr()
        self.layer = DenseLayer(
            shape,
            DenseWeights(
                weights["qkv"], weights["o"], weights["gate_up"], weights["down"], norm, norm
            ),
            DenseScratch(shape),
            helpers,
        )
        self.linear = DenseLinear(weights["gate_up"], *sizes["gate_up"], helpers)
        self.rows, self.x, self.rope = rows, rows_of(rows, HIDDEN), rows_of(rows, 2 * SIZE)
        self.o, self.wide = rows_of(rows, Q_HEADS * SIZE), rows_of(rows, 2 * INNER)
        self.qkv = rows_of(rows, shape.qkv_size)
        self.operations = 2 * rows * HIDDEN * 2 * INNER

    def modules(self) -> None:
        """Both halves of a layer around its attention."""
        x, rope, o = self.x.data_ptr(), self.rope.data_ptr(), self.o.data_ptr()
        self.layer.before(self.rows, x, HIDDEN, rope, 2 * SIZE, self.qkv.data_ptr())
        self.layer.after(self.rows, o, Q_HEADS * SIZE, x, HIDDEN)
        self.x.clamp_(-1, 1)

    def product(self) -> None:
        """Gate and up."""
        self.linear.run(self.rows, self.x.data_ptr(), HIDDEN, self.wide.data_ptr(), 2 * INNER)

    def torch(self) -> torch.Tensor:
        """The same product."""
        return torch.nn.functional.linear(self.x, self.values["gate_up"])


def seconds(sides: dict[str, Run], turns: int) -> dict[str, float]:
    """Medians, side by side; the first turn is not counted."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(turns + 1):
        for name, run in sides.items():
            begin = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - begin)
    return {name: statistics.median(some[1:]) for name, some in times.items()}


def measure(rows: int, context: int, helpers: Workers | None, turns: int) -> dict[str, float]:
    """One line of the table."""
    chunk, dense = Chunk(rows, context, helpers), Dense(rows, helpers)
    sides: dict[str, Run] = {
        "native": chunk.native,
        "sdpa": chunk.torch,
        "product": dense.product,
        "torch": dense.torch,
        "modules": dense.modules,
    }
    error, took = chunk.error(), seconds(sides, turns)
    chunk.arena.close()
    return {
        "rows": rows,
        "context": context,
        "native_gflops": chunk.operations / took["native"] / 1e9,
        "sdpa_gflops": chunk.operations / took["sdpa"] / 1e9,
        "native_product_gflops": dense.operations / took["product"] / 1e9,
        "torch_product_gflops": dense.operations / took["torch"] / 1e9,
        "attention_share": took["native"] / (took["native"] + took["modules"]),
        "layer_ms": (took["native"] + took["modules"]) * 1e3,
        "error": error,
    }


def show(rows: list[dict[str, float]]) -> None:
    """The table."""
    names = ("rows", "context", "attention", "SDPA", "our product", "torch's", "share", "layer, ms")
    table = Table(*names, title="GFLOP/s; attention's share of a layer's time")
    for row in rows:
        speeds = [f"{value:.0f}" for value in list(row.values())[:6]]
        table.add_row(*speeds, f"{row['attention_share']:.0%}", f"{row['layer_ms']:.1f}")
    Console(width=110).print(table)


def main() -> None:
    """One thread, or as many as there are cores."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=5)
    options, cores = parser.parse_args(), sorted(os.sched_getaffinity(0))
    torch.set_num_threads(options.threads)
    if options.threads == 1:
        os.sched_setaffinity(0, {cores[0]})
    with Workers(options.threads - 1, cores=cores[1 : options.threads]) as helpers:
        rows = [
            measure(chunk, context, helpers if options.threads > 1 else None, options.turns)
            for chunk in CHUNKS
            for context in CONTEXTS
        ]
    show(rows)
    report.write("prefill_attention", {"threads": options.threads, "rows": rows}, seed=0)


if __name__ == "__main__":
    main()
