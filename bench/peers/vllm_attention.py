"""vLLM's CPU decode attention alone, run by its own interpreter as a process of its own.

It is asked over stdin, a line of JSON each: a shape, then "run" as often as wanted. Answers are
lines of JSON too: `{"ready": true}`, `{"seconds": 0.1}` or `{"error": "..."}`.
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
MAX_ERROR = 0.02  # of the largest value


class Problem:
    """Equal rows in bfloat16 over blocks in random order, in vLLM's packed layout."""

    def __init__(self, shape: dict[str, int]) -> None:
        self.ops: Any = importlib.import_module("vllm._custom_ops")
        backend: Any = importlib.import_module("vllm.v1.attention.backends.cpu_attn")
        self.isa = backend._get_attn_isa(torch.bfloat16, BLOCK_TOKENS)
        self.shape = shape
        self.scale = shape["head_size"] ** -0.5
        torch.set_num_threads(shape["threads"])
        self._fill()
        rows, heads = shape["rows"], shape["kv_heads"] * shape["group"]
        self.q = torch.randn(rows, heads, shape["head_size"], dtype=torch.bfloat16)
        self.o = torch.empty_like(self.q)
        self.lengths = torch.full((rows,), shape["tokens"], dtype=torch.int32)
        self.starts = torch.arange(rows + 1, dtype=torch.int32)
        self.work = self._work_list()

    def _fill(self) -> None:
        rows, tokens = self.shape["rows"], self.shape["tokens"]
        width = self.shape["kv_heads"], self.shape["head_size"]
        per_row = -(-tokens // BLOCK_TOKENS)
        blocks = (rows * per_row, width[0], 2 * BLOCK_TOKENS, width[1])
        self.k_cache, self.v_cache = torch.zeros(blocks, dtype=torch.bfloat16).chunk(2, dim=2)
        self.table = torch.randperm(rows * per_row, dtype=torch.int32).view(rows, per_row)
        self.k, self.v = (torch.randn(tokens, *width, dtype=torch.bfloat16) for _ in "kv")
        at = torch.arange(tokens)
        for row in self.table.long():
            slots = row[at // BLOCK_TOKENS] * BLOCK_TOKENS + at % BLOCK_TOKENS
            self.ops.cpu_attn_reshape_and_cache(
                self.k, self.v, self.k_cache, self.v_cache, slots, self.isa
            )

    def _work_list(self) -> torch.Tensor:
        """Made once per step for all layers, so it is not timed."""
        work: torch.Tensor = self.ops.cpu_attn_get_scheduler_metadata(
            num_reqs=self.shape["rows"],
            num_heads=self.q.shape[1],
            num_kv_heads=self.shape["kv_heads"],
            head_dim=self.shape["head_size"],
            seq_lens=self.lengths,
            dtype=torch.bfloat16,
            query_start_loc=self.starts,
            causal=True,
            sliding_window_size=-1,
            isa=self.isa,
            enable_kv_split=True,
        )
        return work

    def run(self) -> float:
        """Seconds of one call over all rows."""
        begin = time.perf_counter()
        self.ops.cpu_attention_with_kv_cache(
            query=self.q,
            key_cache=self.k_cache,
            value_cache=self.v_cache,
            output=self.o,
            query_start_loc=self.starts,
            seq_lens=self.lengths,
            scale=self.scale,
            causal=True,
            alibi_slopes=None,
            sliding_window=-1,
            block_table=self.table,
            softcap=0.0,
            scheduler_metadata=self.work,
            s_aux=None,
        )
        return time.perf_counter() - begin

    def check(self) -> None:
        """What computes something else is no peer: the last row against float32."""
        self.run()
        keys, values = (
            side.float().repeat_interleave(self.shape["group"], dim=1) for side in (self.k, self.v)
        )
        scores = torch.einsum("hd,khd->hk", self.q[-1].float(), keys) * self.scale
        right = torch.einsum("hk,khd->hd", scores.softmax(dim=-1), values)
        error = float((self.o[-1].float() - right).abs().max() / values.abs().max())
        if not error < MAX_ERROR:
            raise RuntimeError(f"its attention is off by {error:.3f} of the largest value")


@torch.inference_mode()
def serve() -> None:
    """Answers until stdin ends. Whatever else writes to stdout goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    problem: Problem | None = None
    for line in sys.stdin:
        asked, answer = json.loads(line), dict[str, object]()
        try:
            if asked == "run" and problem is not None:
                answer["seconds"] = problem.run()
            else:
                problem = None  # its memory first
                problem = Problem(asked)
                problem.check()
                answer["ready"] = True
        except Exception as error:  # whatever it is, the other side decides
            answer["error"] = f"{type(error).__name__}: {error}"
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    serve()
