"""A prefill chunk's attention on the CPU device: arithmetic per second beside plain matrix products
of the same rows, and its share of a layer's time. `bench/out/prefill_attention.json`.

Multiplications and additions that the causal mask leaves are counted. torch has its KV contiguous,
its heads expanded and its mask built beforehand; it attends in bfloat16 and, as it has no products
of bfloat16 for CPUs without AVX-512, in float32 too.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

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

BLOCK = 16
Run = Callable[[], object]


@dataclass(frozen=True)
class Model:
    """Sizes of one layer."""

    q_heads: int
    kv_heads: int
    size: int
    hidden: int
    inner: int


MODELS = {
    "smollm2-135m": Model(9, 3, 64, 576, 1536),
    "qwen2.5-3b": Model(16, 2, 128, 2048, 11008),  # group 8
}


def rows_of(count: int, width: int) -> torch.Tensor:
    """Random bfloat16."""
    return torch.randn(count, width).to(torch.bfloat16)


class Chunk:
    """`rows` tokens behind `context` others, by every side."""

    def __init__(self, model: Model, rows: int, context: int, helpers: Workers | None) -> None:
        self.model, self.rows, self.context, tokens = model, rows, context, rows + context
        self._q_width = model.q_heads * model.size
        self._kv_width = width = model.kv_heads * model.size
        blocks = -(-tokens // BLOCK)
        config = ArenaConfig(1, model.kv_heads, model.size, blocks, 1, blocks, DType.BF16)
        self.arena = Arena(config)
        self.sequence = self.arena.open_sequence()
        shuffled = np.random.default_rng(0).permutation(blocks).astype(np.int32)
        self.arena.set_blocks(self.sequence, 0, shuffled)
        self.k, self.v = rows_of(tokens, width), rows_of(tokens, width)
        sides = self.k.data_ptr(), self.v.data_ptr()
        self.arena.append(self.sequence, 0, 0, context, *sides, dtype=DType.BF16)
        self.q, self.o = rows_of(rows, self._q_width), rows_of(rows, self._q_width)
        scale = model.size**-0.5
        self.call = AttendCall(self.arena, model.q_heads, DType.BF16, scale, 1, helpers)
        one = np.array([self.sequence]), np.array([rows]), np.array([context])
        self.call.set_segments(*one)
        self.call.set_strides(self._q_width, width, width, self._q_width)
        self._expand()

    def _expand(self) -> None:
        """torch's view of the same."""
        model = self.model
        q = self.q.view(1, self.rows, model.q_heads, model.size).transpose(1, 2).contiguous()
        k, v = (
            side.view(1, -1, model.kv_heads, model.size)
            .transpose(1, 2)
            .repeat_interleave(model.q_heads // model.kv_heads, 1)
            .contiguous()
            for side in (self.k, self.v)
        )
        seen = torch.arange(self.rows + self.context)[None] <= (
            self.context + torch.arange(self.rows)[:, None]
        )
        mask = torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)
        self._expanded = {
            dtype: [side.to(dtype) for side in (q, k, v, mask)]
            for dtype in (torch.bfloat16, torch.float32)
        }

    @property
    def operations(self) -> int:
        """Of both products, of what is seen."""
        seen = self.rows * self.context + self.rows * (self.rows + 1) // 2
        return 4 * self._q_width * seen

    def native(self) -> None:
        """Appends and attends."""
        own = self.context * self._kv_width * 2
        k, v = self.k.data_ptr() + own, self.v.data_ptr() + own
        self.call.run(0, self.q.data_ptr(), k, v, self.o.data_ptr())

    def torch(self, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        """Attends."""
        attend = torch.nn.functional.scaled_dot_product_attention
        q, k, v, mask = self._expanded[dtype]
        if self.context == 0:
            return attend(q, k, v, is_causal=True)
        return attend(q, k, v, attn_mask=mask)

    def error(self) -> float:
        """Largest difference of the two, over the largest output."""
        self.native()
        right = self.torch().transpose(1, 2).reshape(self.rows, -1).float()
        return float((self.o.float() - right).abs().max() / right.abs().max())


class Dense:
    """The rest of a layer for the same rows, and one plain product in two libraries."""

    def __init__(self, model: Model, rows: int, helpers: Workers | None) -> None:
        self.model, hidden, inner = model, model.hidden, model.inner
        shape = DenseShape(hidden, inner, model.q_heads, model.kv_heads, model.size, 1e-5)
        sizes = {
            "qkv": (shape.qkv_size, hidden),
            "o": (hidden, model.q_heads * model.size),
            "gate_up": (2 * inner, hidden),
            "down": (hidden, inner),
        }
        self.values = {name: 0.02 * rows_of(*size) for name, size in sizes.items()}
        self.norm = torch.ones(hidden, dtype=torch.bfloat16)
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
        self.rows, self.x, self.rope = rows, rows_of(rows, hidden), rows_of(rows, 2 * model.size)
        self.o, self.wide = rows_of(rows, model.q_heads * model.size), rows_of(rows, 2 * inner)
        self.qkv = rows_of(rows, shape.qkv_size)
        self.operations = 2 * rows * hidden * 2 * inner

    def modules(self) -> None:
        """Both halves of a layer around its attention."""
        x, rope, o = self.x.data_ptr(), self.rope.data_ptr(), self.o.data_ptr()
        hidden, size = self.model.hidden, self.model.size
        self.layer.before(self.rows, x, hidden, rope, 2 * size, self.qkv.data_ptr())
        self.layer.after(self.rows, o, self.model.q_heads * size, x, hidden)
        self.x.clamp_(-1, 1)

    def product(self) -> None:
        """Gate and up."""
        width = 2 * self.model.inner
        self.linear.run(
            self.rows, self.x.data_ptr(), self.model.hidden, self.wide.data_ptr(), width
        )

    def torch(self) -> torch.Tensor:
        """The same product."""
        return torch.nn.functional.linear(self.x, self.values["gate_up"])


def seconds(sides: dict[str, Run], turns: int, *, alone: bool) -> dict[str, float]:
    """Medians, side by side; the first turn is not counted. Of a thread alone its time on its core,
    which other work on the machine changes least."""
    clock = time.thread_time if alone else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(turns + 1):
        for name, run in sides.items():
            begin = clock()
            run()
            times[name].append(clock() - begin)
    return {name: statistics.median(some[1:]) for name, some in times.items()}


def measure(
    model: Model, rows: int, context: int, helpers: Workers | None, turns: int
) -> dict[str, float]:
    """One line of the table."""
    chunk, dense = Chunk(model, rows, context, helpers), Dense(model, rows, helpers)
    sides: dict[str, Run] = {
        "native": chunk.native,
        "sdpa": chunk.torch,
        "sdpa_float32": lambda: chunk.torch(torch.float32),
        "product": dense.product,
        "torch": dense.torch,
        "modules": dense.modules,
    }
    error, took = chunk.error(), seconds(sides, turns, alone=helpers is None)
    chunk.arena.close()
    return {
        "rows": rows,
        "context": context,
        "native_gflops": chunk.operations / took["native"] / 1e9,
        "sdpa_gflops": chunk.operations / took["sdpa"] / 1e9,
        "sdpa_float32_gflops": chunk.operations / took["sdpa_float32"] / 1e9,
        "native_product_gflops": dense.operations / took["product"] / 1e9,
        "torch_product_gflops": dense.operations / took["torch"] / 1e9,
        "attention_share": took["native"] / (took["native"] + took["modules"]),
        "layer_ms": (took["native"] + took["modules"]) * 1e3,
        "error": error,
    }


def show(rows: list[dict[str, float]]) -> None:
    """The table."""
    names = ["rows", "context", "attention", "SDPA", "SDPA, float32", "our product", "torch's"]
    table = Table(
        *names, "share", "layer, ms", title="GFLOP/s; attention's share of a layer's time"
    )
    for row in rows:
        speeds = [f"{value:.0f}" for value in list(row.values())[:7]]
        table.add_row(*speeds, f"{row['attention_share']:.0%}", f"{row['layer_ms']:.1f}")
    Console(width=110).print(table)


def main() -> None:
    """One thread, or as many as there are cores."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--model", choices=MODELS, default="smollm2-135m")
    parser.add_argument("--chunks", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--contexts", type=int, nargs="+", default=[0, 1024, 4096])
    options, cores = parser.parse_args(), sorted(os.sched_getaffinity(0))
    torch.set_num_threads(options.threads)
    if options.threads == 1:
        os.sched_setaffinity(0, {cores[0]})
    with Workers(options.threads - 1, cores=cores[1 : options.threads]) as workers:
        helpers = workers if options.threads > 1 else None
        rows = [
            measure(MODELS[options.model], chunk, context, helpers, options.turns)
            for chunk in options.chunks
            for context in options.contexts
        ]
    show(rows)
    about = {"model": options.model, "threads": options.threads}
    report.write("prefill_attention", about | {"rows": rows}, seed=0)


if __name__ == "__main__":
    main()
