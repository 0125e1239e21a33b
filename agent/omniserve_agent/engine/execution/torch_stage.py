"""Layer-major prefill attention on a torch device: one layer's KV is staged, then imported."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from omniserve_agent.engine.execution.iteration import StagedPrefill
from omniserve_agent.engine.kv.torch_copies import TorchCopies
from omniserve_agent.engine.kv.torch_store import attend_padded


@dataclass(eq=False)
class TorchStageAttention:
    """See `StageAttention`. k and v [tokens, Hkv, D] of one layer per prefill under way."""

    copies: TorchCopies
    _areas: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)

    def attend(
        self,
        layer: int,
        staged: StagedPrefill,
        qkv: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    ) -> torch.Tensor:
        """See `StageAttention`."""
        config = self.copies.device.config
        if staged.row == 0:
            self._load_prefix(layer, staged)
        area_k, area_v = self._areas[staged.handle]
        q, k, v = (part.reshape(len(part), -1, config.head_size) for part in qkv)
        first = staged.start + staged.row
        end = first + len(q)
        area_k[first:end], area_v[first:end] = k, v
        queries = torch.arange(first, end, device=q.device)
        mask = torch.arange(end, device=q.device)[None] <= queries[:, None]
        out = attend_padded(q[None], area_k[None, :end], area_v[None, :end], mask[None, None])
        return out.reshape(len(q), -1)

    def _load_prefix(self, layer: int, staged: StagedPrefill) -> None:
        kv = self.copies.device
        if staged.handle not in self._areas:
            tokens = staged.start + len(staged.token_ids)
            shape = (tokens, kv.config.kv_heads, kv.config.head_size)
            self._areas[staged.handle] = (
                torch.empty(shape, dtype=kv.k.dtype, device=kv.device),
                torch.empty(shape, dtype=kv.v.dtype, device=kv.device),
            )
        if staged.start:
            k, v = self.copies.read(staged.sequence, layer, 0, staged.start)
            area_k, area_v = self._areas[staged.handle]
            area_k[: staged.start], area_v[: staged.start] = k.to(kv.device), v.to(kv.device)

    def finish_layer(self, layer: int, staged: StagedPrefill) -> None:
        """See `StageAttention`."""
        area_k, area_v = self._areas[staged.handle]
        k, v = area_k[staged.start :], area_v[staged.start :]
        self.copies.write(staged.sequence, layer, staged.start, k, v)
        if layer == self.copies.device.config.layers - 1:
            del self._areas[staged.handle]

    def discard(self, staged: StagedPrefill) -> None:
        """See `StageAttention`."""
        self._areas.pop(staged.handle, None)
