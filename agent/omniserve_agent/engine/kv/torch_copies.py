"""Copies between torch device KV and the host arena, a layer at a time."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from omniserve_agent.engine.kv.torch_store import TorchKv
from omniserve_native import Arena


@dataclass(eq=False)
class TorchCopies:
    """See `TierCopies`. The arena stores the same dtype."""

    device: TorchKv
    host: Arena

    def to_host(self, device: int, host: int, start: int, count: int) -> None:
        """See `TierCopies`."""
        at = self.device.flat_positions(device, start, count).to(self.device.device)
        for layer in range(self.device.config.layers):
            k, v = self.device.k[layer][at].cpu(), self.device.v[layer][at].cpu()
            self.host.import_tokens(host, layer, start, count, k.data_ptr(), v.data_ptr())

    def to_device(self, host: int, device: int, start: int, count: int) -> None:
        """See `TierCopies`."""
        at = self.device.flat_positions(device, start, count).to(self.device.device)
        for layer in range(self.device.config.layers):
            k, v = self.read(host, layer, start, count)
            self.device.k[layer].index_copy_(0, at, k.to(self.device.device))
            self.device.v[layer].index_copy_(0, at, v.to(self.device.device))

    def read(
        self, host: int, layer: int, start: int, count: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """k and v [count, Hkv, D] of a host sequence, on the CPU."""
        config = self.device.config
        shape = (count, config.kv_heads, config.head_size)
        k, v = (torch.empty(shape, dtype=self.device.k.dtype) for _ in range(2))
        self.host.export_tokens(host, layer, start, count, k.data_ptr(), v.data_ptr())
        return k, v
