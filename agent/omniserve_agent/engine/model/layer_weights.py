"""The tensors of one layer, as every kind of layer is made from them."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class LinearWeight:
    """weight [out, in], bias [out] or None."""

    weight: torch.Tensor
    bias: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """On the model's device, in its dtype. D is the head size, I the intermediate size."""

    input_norm: torch.Tensor  # [H]
    qkv: LinearWeight  # H -> (Hq + 2 Hkv) D
    qk_norm: torch.Tensor | None  # [Hq + Hkv, D], the norms' weights repeated per head
    o: LinearWeight  # Hq D -> H
    mlp_norm: torch.Tensor  # [H]
    gate_up: LinearWeight  # H -> 2 I
    down: LinearWeight  # I -> H
