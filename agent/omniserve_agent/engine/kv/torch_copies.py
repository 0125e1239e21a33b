"""Copies between torch device KV and the host arena, a layer at a time."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from omniserve_agent.engine.kv.tiles import pack_tiles, whole_blocks
from omniserve_agent.engine.kv.torch_store import TorchKv
from omniserve_native import BLOCK_TOKENS, Arena, DType

PIECE_TOKENS = 1024  # packed and copied at a time: bounds what it takes on the device and pins here
# Fewer, and launching what packs them takes longer than the host (decision 0013).
LEAST_PACKED_TOKENS = 128


@dataclass(eq=False)
class TorchCopies:
    """See `TierCopies`. `dtype` is the device's; the arena may store another.

    Whole blocks are packed by the device, from `packs_from` tokens on, so that the host only copies
    them; None: the host packs all.
    """

    device: TorchKv
    host: Arena
    dtype: DType
    packs_from: int | None = None

    def __post_init__(self) -> None:
        self._layout, pinned = self.host.layout(), self.device.device.type == "cuda"
        block_bytes = self._layout.kv_heads * self._layout.tile_bytes
        size = PIECE_TOKENS // BLOCK_TOKENS * block_bytes
        self._room = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)

    def to_host(self, device: int, host: int, start: int, count: int) -> None:
        """See `TierCopies`."""
        at = self.device.flat_positions(device, start, count).to(self.device.device)
        for layer in range(self.device.config.layers):
            self.write(host, layer, start, self.device.k[layer][at], self.device.v[layer][at])

    def to_device(self, host: int, device: int, start: int, count: int) -> None:
        """See `TierCopies`."""
        at = self.device.flat_positions(device, start, count).to(self.device.device)
        for layer in range(self.device.config.layers):
            k, v = self.read(host, layer, start, count)
            self.device.k[layer].index_copy_(0, at, k.to(self.device.device))
            self.device.v[layer].index_copy_(0, at, v.to(self.device.device))

    def write(self, host: int, layer: int, start: int, k: torch.Tensor, v: torch.Tensor) -> None:
        """k and v [count, Hkv, D] on the device to a host sequence, from position `start` on."""
        first, end = whole_blocks(start, len(k))
        if self.packs_from is None or end - first < self.packs_from:
            first = end = len(k)
        self._append(host, layer, start, k[:first], v[:first])
        for at in range(first, end, PIECE_TOKENS):
            piece = slice(at, min(at + PIECE_TOKENS, end))
            self._import(host, layer, start + at, k[piece], v[piece])
        self._append(host, layer, start + end, k[end:], v[end:])

    def _append(self, host: int, layer: int, start: int, k: torch.Tensor, v: torch.Tensor) -> None:
        if len(k):
            k, v = k.cpu(), v.cpu()
            addresses = k.data_ptr(), v.data_ptr()
            self.host.append(host, layer, start, len(k), *addresses, dtype=self.dtype)

    def _import(self, host: int, layer: int, start: int, k: torch.Tensor, v: torch.Tensor) -> None:
        tiles = pack_tiles(k, v, self._layout).view(-1)
        self._room[: len(tiles)].copy_(tiles)
        self.host.import_tiles(host, layer, start, len(k), self._room.data_ptr())

    def read(
        self, host: int, layer: int, start: int, count: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """k and v [count, Hkv, D] of a host sequence, on the CPU."""
        config = self.device.config
        shape = (count, config.kv_heads, config.head_size)
        k, v = (torch.empty(shape, dtype=self.device.k.dtype) for _ in range(2))
        self.host.read(host, layer, start, count, k.data_ptr(), v.data_ptr(), self.dtype)
        return k, v
