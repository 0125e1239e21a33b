"""Row buffers of a batch: allocated once, for the largest batch the caps allow."""

from __future__ import annotations

import torch

from omniserve_agent.engine.model.model import Model


class RowBuffers:
    """x [capacity, H] is the residual stream, o [capacity, Hq D] the attention output, rope
    [capacity, 2 D] the rotary rows; all on the model's device.
    """

    def __init__(self, model: Model, capacity: int) -> None:
        self.capacity = capacity
        self._model = model
        self.x = self._rows(model.config.hidden_size)
        self.o = self._rows(model.config.q_heads * model.config.head_size)
        self.rope = self._rows(model.rope_rows.shape[1])

    def _rows(self, width: int) -> torch.Tensor:
        model = self._model
        return torch.zeros(self.capacity, width, dtype=model.dtype, device=model.device)
