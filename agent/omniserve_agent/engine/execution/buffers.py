"""Row buffers of a batch: they grow when a larger batch comes, and are never copied."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(eq=False)
class RowBuffers:
    """x is the residual stream; o the attention output; tail positions are on the host.

    x [capacity, H], o [capacity, Hq D], rope [capacity, 2 D], positions [capacity] int64 (CPU).
    """

    hidden_size: int
    o_size: int
    rope_size: int
    dtype: torch.dtype
    device: torch.device
    capacity: int = 0

    def reserve(self, rows: int) -> None:
        """Room for that many rows; what was in the buffers is gone when they grow."""
        if rows <= self.capacity:
            return
        self.capacity = max(rows, 2 * self.capacity)
        self.x = self._empty(self.hidden_size)
        self.o = self._empty(self.o_size)
        self.rope = self._empty(self.rope_size)
        self.positions = torch.empty(self.capacity, dtype=torch.int64)

    def _empty(self, width: int) -> torch.Tensor:
        return torch.empty(self.capacity, width, dtype=self.dtype, device=self.device)
