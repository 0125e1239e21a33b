"""vLLM's CPU decode attention alone, run by its own interpreter as a process of its own.

It is asked over stdin, a line of JSON each: a shape, then `{"threads": 2, "rows": 9}` for a run
over the first rows, as often as wanted.
Answers are lines of JSON too: `{"ready": true}`, `{"seconds": 0.1}` or `{"error": "..."}`. One
buffer holds the KV of all shapes; of a shape only the row that is checked is filled anew.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from typing import Any

import torch

BLOCK_TOKENS = 128  # vLLM's default on CPUs
LEAST_ELEMENTS = 128 << 20  # room for most shapes at once
MAX_ERROR = 0.02  # of the largest value


class Problem:
    """Equal rows in bfloat16 over blocks in random order, in vLLM's packed layout. `memory`: values
    of any earlier shape."""

    def __init__(self, shape: dict[str, int], memory: torch.Tensor) -> None:
        self.ops: Any = importlib.import_module("vllm._custom_ops")
        backend: Any = importlib.import_module("vllm.v1.attention.backends.cpu_attn")
        self.isa = backend._get_attn_isa(torch.bfloat16, BLOCK_TOKENS)
        self.shape = shape
        self.scale = shape["head_size"] ** -0.5
        self._fill(memory)
        rows, heads = shape["rows"], shape["kv_heads"] * shape["group"]
        self.q = torch.randn(rows, heads, shape["head_size"], dtype=torch.bfloat16)
        self.o = torch.empty_like(self.q)
        self.lengths = torch.full((rows,), shape["tokens"], dtype=torch.int32)
        self.starts = torch.arange(rows + 1, dtype=torch.int32)
        self.work: dict[tuple[int, int], torch.Tensor] = {}

    def _fill(self, memory: torch.Tensor) -> None:
        rows, tokens = self.shape["rows"], self.shape["tokens"]
        width = self.shape["kv_heads"], self.shape["head_size"]
        per_row = -(-tokens // BLOCK_TOKENS)
        blocks = (rows * per_row, width[0], 2 * BLOCK_TOKENS, width[1])
        self.k_cache, self.v_cache = memory[: elements(self.shape)].view(blocks).chunk(2, dim=2)
        self.table = torch.randperm(rows * per_row, dtype=torch.int32).view(rows, per_row)
        self.k, self.v = (torch.randn(tokens, *width, dtype=torch.bfloat16) for _ in "kv")
        at = torch.arange(tokens)
        slots = self.table[0].long()[at // BLOCK_TOKENS] * BLOCK_TOKENS + at % BLOCK_TOKENS
        self.ops.cpu_attn_reshape_and_cache(
            self.k, self.v, self.k_cache, self.v_cache, slots, self.isa
        )

    def _work_list(self, rows: int) -> torch.Tensor:
        """Made once per step for all layers, so it is not timed; for torch's number of threads."""
        work: torch.Tensor = self.ops.cpu_attn_get_scheduler_metadata(
            num_reqs=rows,
            num_heads=self.q.shape[1],
            num_kv_heads=self.shape["kv_heads"],
            head_dim=self.shape["head_size"],
            seq_lens=self.lengths[:rows],
            dtype=torch.bfloat16,
            query_start_loc=self.starts[: rows + 1],
            causal=True,
            sliding_window_size=-1,
            isa=self.isa,
            enable_kv_split=True,
        )
        return work

    def run(self, threads: int, rows: int) -> float:
        """Seconds of one call over the first rows."""
        torch.set_num_threads(threads)
        if (threads, rows) not in self.work:
            self.work[threads, rows] = self._work_list(rows)
        begin = time.perf_counter()
        self.ops.cpu_attention_with_kv_cache(
            query=self.q[:rows],
            key_cache=self.k_cache,
            value_cache=self.v_cache,
            output=self.o[:rows],
            query_start_loc=self.starts[: rows + 1],
            seq_lens=self.lengths[:rows],
            scale=self.scale,
            causal=True,
            alibi_slopes=None,
            sliding_window=-1,
            block_table=self.table[:rows],
            softcap=0.0,
            scheduler_metadata=self.work[threads, rows],
            s_aux=None,
        )
        return time.perf_counter() - begin

    def check(self) -> None:
        """What computes something else is no peer: the first row against float32."""
        keys, values = self.k.float().permute(1, 2, 0), self.v.float().transpose(0, 1)
        q = self.q[0].float().view(self.shape["kv_heads"], self.shape["group"], -1)
        right = ((q @ keys * self.scale).softmax(dim=-1) @ values).view(self.o[0].shape)
        error = float((self.o[0].float() - right).abs().max() / values.abs().max())
        if not error < MAX_ERROR:
            raise RuntimeError(f"its attention is off by {error:.3f} of the largest value")


def elements(shape: dict[str, int]) -> int:
    """Of the caches of a shape, in whole blocks."""
    blocks = shape["rows"] * -(-shape["tokens"] // BLOCK_TOKENS)
    return blocks * BLOCK_TOKENS * 2 * shape["kv_heads"] * shape["head_size"]


class Peer:
    """Answers one question after the other. `cores`: a thread each."""

    def __init__(self, cores: list[int]) -> None:
        self._cores = cores
        self._memory = torch.empty(0, dtype=torch.bfloat16)
        self._problem: Problem | None = None

    def answer(self, asked: dict[str, int]) -> dict[str, object]:
        """Of one line."""
        if "threads" in asked and self._problem is not None:
            return {"seconds": self._run(self._problem, **asked)}
        self._problem = None
        self._make_room(elements(asked))
        self._problem = Problem(asked, self._memory)
        self._run(self._problem, len(self._cores), min(2, asked["rows"]))
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


@torch.inference_mode()
def serve() -> None:
    """Answers until stdin ends. Whatever else writes to stdout goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    peer = Peer(sorted(os.sched_getaffinity(0)))
    for line in sys.stdin:
        try:
            answer = peer.answer(json.loads(line))
        except Exception as error:  # whatever it is, the other side decides
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    serve()
