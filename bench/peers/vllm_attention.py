"""vLLM's CPU attention alone, run by its own interpreter as a process of its own.

It is asked over stdin (asked.py): `{"shape": ...}`, then `{"threads": 2, "rows": 9}` for a run over
the first rows, as often as wanted. One buffer holds the KV of all shapes; of a shape only the row
that is checked is filled anew.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

BLOCK_TOKENS = 128  # vLLM's default on CPUs
LEAST_ELEMENTS = 128 << 20  # room for most shapes at once
MAX_ERROR = 0.02  # of the largest value
Sizes = dict[str, Any]


class Problem:
    """Rows in bfloat16 over blocks in random order, in vLLM's packed layout. `memory`: values of
    any earlier shape."""

    def __init__(self, sizes: Sizes, memory: torch.Tensor) -> None:
        self.ops: Any = importlib.import_module("vllm._custom_ops")
        backend: Any = importlib.import_module("vllm.v1.attention.backends.cpu_attn")
        self.isa = backend._get_attn_isa(torch.bfloat16, BLOCK_TOKENS)
        self.sizes, self.q_len = sizes, int(sizes["q_len"])
        self.scale = sizes["head_size"] ** -0.5
        self.lengths = torch.tensor(sizes["tokens"], dtype=torch.int32)
        self._fill(memory)
        rows, heads = len(self.lengths), sizes["kv_heads"] * sizes["group"]
        self.q = torch.randn(rows * self.q_len, heads, sizes["head_size"], dtype=torch.bfloat16)
        self.o = torch.empty_like(self.q)
        self.starts = torch.arange(rows + 1, dtype=torch.int32) * self.q_len
        self.work: dict[tuple[int, int, int], torch.Tensor] = {}

    def _fill(self, memory: torch.Tensor) -> None:
        tokens, counts = self.sizes["tokens"][0], blocks_of(self.sizes)
        width = self.sizes["kv_heads"], self.sizes["head_size"]
        blocks = (sum(counts), width[0], 2 * BLOCK_TOKENS, width[1])
        self.k_cache, self.v_cache = memory[: elements(self.sizes)].view(blocks).chunk(2, dim=2)
        order = torch.randperm(sum(counts), dtype=torch.int32)
        self.table = torch.zeros(len(counts), max(counts), dtype=torch.int32)
        for row, count, end in zip(self.table, counts, accumulate(counts), strict=True):
            row[:count] = order[end - count : end]
        self.k, self.v = (torch.randn(tokens, *width, dtype=torch.bfloat16) for _ in "kv")
        at = torch.arange(tokens)
        slots = self.table[0].long()[at // BLOCK_TOKENS] * BLOCK_TOKENS + at % BLOCK_TOKENS
        self.ops.cpu_attn_reshape_and_cache(
            self.k, self.v, self.k_cache, self.v_cache, slots, self.isa
        )

    def _work_list(self, first: int, end: int) -> torch.Tensor:
        """Made once per step for all layers, so it is not timed; for torch's number of threads."""
        work: torch.Tensor = self.ops.cpu_attn_get_scheduler_metadata(
            num_reqs=end - first,
            num_heads=self.q.shape[1],
            num_kv_heads=self.sizes["kv_heads"],
            head_dim=self.sizes["head_size"],
            seq_lens=self.lengths[first:end],
            dtype=torch.bfloat16,
            query_start_loc=self.starts[: end - first + 1],
            causal=True,
            sliding_window_size=-1,
            isa=self.isa,
            enable_kv_split=True,
        )
        return work

    def run(self, threads: int, rows: int) -> float:
        """Seconds of the calls over the first rows."""
        torch.set_num_threads(threads)
        step = self.sizes["call_rows"]
        return sum(
            self._call(threads, first, min(rows, first + step)) for first in range(0, rows, step)
        )

    def _call(self, threads: int, first: int, end: int) -> float:
        """Seconds of one."""
        if (threads, first, end) not in self.work:
            self.work[threads, first, end] = self._work_list(first, end)
        queries = slice(first * self.q_len, end * self.q_len)
        begin = time.perf_counter()
        self.ops.cpu_attention_with_kv_cache(
            query=self.q[queries],
            key_cache=self.k_cache,
            value_cache=self.v_cache,
            output=self.o[queries],
            query_start_loc=self.starts[: end - first + 1],
            seq_lens=self.lengths[first:end],
            scale=self.scale,
            causal=True,
            alibi_slopes=None,
            sliding_window=-1,
            block_table=self.table[first:end],
            softcap=0.0,
            scheduler_metadata=self.work[threads, first, end],
            s_aux=None,
        )
        return time.perf_counter() - begin

    def check(self) -> None:
        """What computes something else is no peer: the first row's queries against float32."""
        keys, values = self.k.float().permute(1, 2, 0), self.v.float().transpose(0, 1)
        for i in range(self.q_len):
            seen = self.k.shape[0] - self.q_len + i + 1
            q = self.q[i].float().view(self.sizes["kv_heads"], self.sizes["group"], -1)
            weights = (q @ keys[..., :seen] * self.scale).softmax(dim=-1)
            right = (weights @ values[:, :seen]).view(self.o[i].shape)
            error = float((self.o[i].float() - right).abs().max() / values.abs().max())
            if not error < MAX_ERROR:
                raise RuntimeError(f"its attention is off by {error:.3f} of the largest value")


def blocks_of(sizes: Sizes) -> list[int]:
    """Of every row."""
    return [-(-tokens // BLOCK_TOKENS) for tokens in sizes["tokens"]]


def elements(sizes: Sizes) -> int:
    """Of the caches of a shape, in whole blocks."""
    return sum(blocks_of(sizes)) * BLOCK_TOKENS * 2 * int(sizes["kv_heads"] * sizes["head_size"])


class Peer:
    """Answers one question after the other. `cores`: a thread each."""

    def __init__(self, cores: list[int]) -> None:
        self._cores = cores
        self._memory = torch.empty(0, dtype=torch.bfloat16)
        self._problem: Problem | None = None

    def answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Of one line."""
        if self._problem is not None and "threads" in asked:
            return {"seconds": self._run(self._problem, **asked)}
        sizes, self._problem = asked["shape"], None
        self._make_room(elements(sizes))
        self._problem = Problem(sizes, self._memory)
        self._run(self._problem, len(self._cores), min(2, len(sizes["tokens"])))
        self._problem.check()
        return {"ready": True}

    def _run(self, problem: Problem, threads: int, rows: int) -> float:
        """OpenMP's threads stay where they were born, with all cores open; the caller moves."""
        os.sched_setaffinity(0, self._cores[:threads])
        seconds = problem.run(threads, rows)
        os.sched_setaffinity(0, self._cores)
        return seconds

    def _make_room(self, count: int) -> None:
        """Values that are no special ones, for the rows that nobody checks."""
        if count > self._memory.numel():
            count = max(count, LEAST_ELEMENTS)
            self._memory = torch.empty(0, dtype=torch.bfloat16)  # gives back the old ones first
            some = torch.randn(1 << 20, dtype=torch.bfloat16)
            self._memory = some.repeat(-(-count // some.numel()))


if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[1]))  # last: nothing may hide what is the peer's
    from asked import serve

    with torch.inference_mode():
        serve(Peer(sorted(os.sched_getaffinity(0))).answer)
