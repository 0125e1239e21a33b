"""Copies between torch device KV and the host arena, a layer at a time."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from omniserve_agent.engine.kv.torch_store import TorchKv
from omniserve_native import Arena, DType


@dataclass(eq=False)
class TorchCopies:
    """See `TierCopies`. `dtype` is the device's; the arena may store another."""

    device: TorchKv
    host: Arena
    dtype: DType

    def to_host(self, device: int, host: int, start: int, count: int) -> None:
        """See `TierCopies`."""
        at = self.device.flat_positions(device, start, count).to(self.device.device)
        for layer in range(self.device.config.layers):
            k, v = self.device.k[layer][at].cpu(), self.device.v[layer][at].cpu()
            self.write(host, layer, start, k, v)

    def to_device(self, host: int, device: int, start: int, count: int) -> None:
        """See `TierCopies`."""
        at = self.device.flat_positions(device, start, count).to(self.device.device)
        for layer in range(self.device.config.layers):
            k, v = self.read(host, layer, start, count)
            self.device.k[layer].index_copy_(0, at, k.to(self.device.device))
            self.device.v[layer].index_copy_(0, at, v.to(self.device.device))

    def write(self, host: int, layer: int, start: int, k: torch.Tensor, v: torch.Tensor) -> None:
        """k and v [count, Hkv, D] on the CPU to a host sequence, from position `start` on."""
        addresses = k.data_ptr(), v.data_ptr()
        self.host.append(host, layer, start, len(k), *addresses, dtype=self.dtype)

    def read(
        self, host: int, layer: int, start: int, count: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """k and v [count, Hkv, D] of a host sequence, on the CPU."""
        config = self.device.config
        shape = (count, config.kv_heads, config.head_size)
        k, v = (torch.empty(shape, dtype=self.device.k.dtype) for _ in range(2))
        self.host.read(host, layer, start, count, k.data_ptr(), v.data_ptr(), self.dtype)
        return k, v
