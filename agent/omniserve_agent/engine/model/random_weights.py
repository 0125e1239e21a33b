"""A model of a given shape with random weights: benchmarks and tests without a checkpoint."""

from __future__ import annotations

import torch

from omniserve_agent.engine.model.config import ModelConfig
from omniserve_agent.engine.model.model import Model, build_model
from omniserve_agent.engine.model.weights import expected_shapes

STANDARD_DEVIATION = 0.02


def random_model(
    config: ModelConfig,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cpu",
    seed: int = 0,
    max_positions: int | None = None,
) -> Model:
    """Normal weights, norms of one, zero biases; drawn on the device, so large shapes are quick.

    The same (config, dtype, device, seed) gives the same weights.
    """
    shapes = expected_shapes(config)
    generator = torch.Generator(device=torch.device(device)).manual_seed(seed)

    def source(name: str) -> torch.Tensor:
        values = torch.empty(shapes[name], dtype=dtype, device=device)
        if name.endswith("bias"):
            return values.zero_()
        if "norm" in name:
            return values.fill_(1.0)
        return values.normal_(0.0, STANDARD_DEVIATION, generator=generator)

    return build_model(config, source, dtype, device, max_positions)
