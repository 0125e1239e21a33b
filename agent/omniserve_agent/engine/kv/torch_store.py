"""Device KV as torch tensors: correct on any torch device; the CUDA path's first version."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from omniserve_agent.engine.execution.rows import Rows
from omniserve_agent.engine.model.config import ModelConfig


@dataclass(slots=True, eq=False)
class _Run:
    """Segments attended in one call: `gather` are flat KV positions, `mask` what a query sees."""

    rows: torch.Tensor  # [segments × queries] row indices, or a slice's worth
    queries: int  # per segment
    gather: torch.Tensor  # [segments, keys]
    mask: torch.Tensor  # [segments, 1, queries, keys] bool


class TorchKv:
    """A `KvStore` over k, v tensors [layers, blocks × block_tokens, kv_heads, head_size]."""

    def __init__(
        self,
        config: ModelConfig,
        blocks: int,
        block_tokens: int,
        dtype: torch.dtype,
        device: torch.device,
        max_sequences: int,
    ) -> None:
        shape = (config.layers, blocks * block_tokens, config.kv_heads, config.head_size)
        self.k = torch.zeros(shape, dtype=dtype, device=device)
        self.v = torch.zeros(shape, dtype=dtype, device=device)
        self.config, self.block_tokens, self.device = config, block_tokens, device
        self.max_sequences = max_sequences
        self._tables: dict[int, list[int]] = {}
        self._free = list(range(max_sequences - 1, -1, -1))
        self._runs: list[_Run] = []
        self._written = torch.empty(0, dtype=torch.int64, device=device)

    # ---- KvStore ---------------------------------------------------------------------------

    def open_sequence(self) -> int:
        """See `KvStore`."""
        sequence = self._free.pop()
        self._tables[sequence] = []
        return sequence

    def set_blocks(self, sequence: int, first: int, blocks: Sequence[int]) -> None:
        """See `KvStore`."""
        self._tables[sequence][first:] = blocks

    def truncate(self, sequence: int, tokens: int) -> None:
        """See `KvStore`; nothing to do: what is beyond is never read before it is written."""

    def close_sequence(self, sequence: int) -> None:
        """See `KvStore`."""
        del self._tables[sequence]
        self._free.append(sequence)

    # ---- addresses -------------------------------------------------------------------------

    def flat_positions(self, sequence: int, start: int, count: int) -> torch.Tensor:
        """Where tokens [start, start + count) lie in k and v's second dimension; on the CPU."""
        table = torch.tensor(self._tables[sequence], dtype=torch.int64)
        tokens = torch.arange(start, start + count)
        return table[tokens // self.block_tokens] * self.block_tokens + tokens % self.block_tokens

    # ---- attention -------------------------------------------------------------------------

    def begin(self, rows: Rows) -> None:
        """Addresses and masks of a batch's device segments, the same for all layers."""
        self._runs, written, decodes, first = [], [], [], 0
        for sequence, q_len, start in zip(
            rows.sequences.tolist(), rows.q_lens.tolist(), rows.starts.tolist(), strict=True
        ):
            keys = self.flat_positions(sequence, 0, start + q_len)
            written.append(keys[start:])
            if q_len == 1:
                decodes.append((first, keys))
            else:
                self._runs.append(self._prefill_run(first, start, q_len, keys))
            first += q_len
        if decodes:
            self._runs.append(self._decode_run(decodes))
        if written:
            self._written = torch.cat(written).to(self.device)

    def _prefill_run(self, first: int, start: int, q_len: int, keys: torch.Tensor) -> _Run:
        mask = torch.arange(start + q_len)[None] <= torch.arange(start, start + q_len)[:, None]
        return _Run(
            torch.arange(first, first + q_len).to(self.device),
            q_len,
            keys[None].to(self.device),
            mask[None, None].to(self.device),
        )

    def _decode_run(self, decodes: list[tuple[int, torch.Tensor]]) -> _Run:
        longest = max(len(keys) for _, keys in decodes)
        gather = torch.zeros(len(decodes), longest, dtype=torch.int64)
        mask = torch.zeros(len(decodes), 1, 1, longest, dtype=torch.bool)
        for index, (_, keys) in enumerate(decodes):
            gather[index, : len(keys)] = keys
            mask[index, ..., : len(keys)] = True
        rows = torch.tensor([row for row, _ in decodes], dtype=torch.int64)
        return _Run(rows.to(self.device), 1, gather.to(self.device), mask.to(self.device))

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, o: torch.Tensor
    ) -> None:
        """Write k, v of the device rows [B, Hkv D], then attend q [B, Hq D] into o [B, Hq D]."""
        heads, size = self.config.kv_heads, self.config.head_size
        self.k[layer].index_copy_(0, self._written, k.reshape(-1, heads, size).to(self.k.dtype))
        self.v[layer].index_copy_(0, self._written, v.reshape(-1, heads, size).to(self.v.dtype))
        for run in self._runs:
            keys, values = self.k[layer][run.gather], self.v[layer][run.gather]
            queries = q[run.rows].view(len(run.gather), run.queries, -1, size)
            out = attend_padded(queries, keys, values, run.mask)
            o[run.rows] = out.reshape(len(run.rows), -1)


def attend_padded(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """q [S, Q, Hq, D], k and v [S, K, Hkv, D], mask [S, 1, Q, K] -> [S, Q, Hq, D]."""
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.to(q.dtype).transpose(1, 2),
        v.to(q.dtype).transpose(1, 2),
        attn_mask=mask,
        enable_gqa=True,
    )
    return out.transpose(1, 2)
