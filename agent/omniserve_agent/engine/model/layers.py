"""One transformer layer for every family, split where attention goes its own way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F

from omniserve_agent.engine.model.config import ModelConfig
from omniserve_agent.engine.model.layer_weights import LayerWeights
from omniserve_agent.engine.model.linear import Linear, make_linear


class DenseModules(Protocol):
    """Dense modules of one layer. Rows are independent, so any mix of requests may share a call.

    Callers run it under `torch.inference_mode()`.
    """

    def pre_attention(
        self, x: torch.Tensor, rope: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Norm, QKV and rotary embedding of x [N, H]; rope [N, 2 D] is from `Model.rope`.

        Returns q [N, Hq D], k [N, Hkv D], v [N, Hkv D]: views with `stride(1) == 1` whose rows lie
        `stride(0)` elements apart, fresh in every call.
        """

    def post_attention(self, o: torch.Tensor, x: torch.Tensor) -> None:
        """Add attention's output o [N, Hq D], then the MLP, to the residual x [N, H] in place."""


@dataclass(frozen=True, slots=True)
class Layer:
    """`DenseModules` by torch operations: every device and dtype."""

    config: ModelConfig
    input_norm: torch.Tensor
    qkv: Linear
    qk_norm: torch.Tensor | None
    o: Linear
    mlp_norm: torch.Tensor
    gate_up: Linear
    down: Linear

    @classmethod
    def of(cls, config: ModelConfig, weights: LayerWeights, device: torch.device) -> Layer:
        """Linear layers come from `make_linear`."""
        qkv, o, gate_up, down = (
            make_linear(part.weight, part.bias, device)
            for part in (weights.qkv, weights.o, weights.gate_up, weights.down)
        )
        return cls(
            config=config,
            input_norm=weights.input_norm,
            qkv=qkv,
            qk_norm=weights.qk_norm,
            o=o,
            mlp_norm=weights.mlp_norm,
            gate_up=gate_up,
            down=down,
        )

    def pre_attention(
        self, x: torch.Tensor, rope: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See `DenseModules`."""
        config = self.config
        q_size, kv_size = config.q_heads * config.head_size, config.kv_heads * config.head_size
        rows = self.qkv(rms_norm(x, self.input_norm, config.rms_eps))
        qk, v = rows.split_with_sizes((q_size + kv_size, kv_size), dim=-1)
        heads = qk.view(x.shape[0], -1, config.head_size)
        if self.qk_norm is not None:
            heads = rms_norm(heads, self.qk_norm, config.rms_eps)
        rotate_(heads, rope)
        q, k = heads.flatten(-2).split_with_sizes((q_size, kv_size), dim=-1)
        return q, k, v

    def post_attention(self, o: torch.Tensor, x: torch.Tensor) -> None:
        """See `DenseModules`."""
        config = self.config
        x.add_(self.o(o))
        rows = self.gate_up(rms_norm(x, self.mlp_norm, config.rms_eps))
        gate, up = rows.chunk(2, dim=-1)
        x.add_(self.down(F.silu(gate).mul_(up)))


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Normalise the last dimension in float32, round, then scale: transformers' order of rounding.

    A scale inside the norm would round once and not twice, which moves bfloat16 answers away from
    the ones the model is known for.
    """
    return F.rms_norm(x, x.shape[-1:], None, eps).mul_(weight)


def rotate_(heads: torch.Tensor, rope: torch.Tensor) -> None:
    """Rotate heads [N, heads, D] in place by rope [N, 2 D] = cosines, then signed sines.

    Element i pairs with element i + D/2. The sign of the pair's first half is folded into the sines
    (see `rope_table`), which turns "rotate half" into a plain roll.
    """
    cos, sin = rope.unsqueeze(1).chunk(2, dim=-1)
    partner = heads.roll(heads.shape[-1] // 2, -1)
    heads.mul_(cos).add_(partner.mul_(sin))


def rope_table(
    config: ModelConfig, positions: int, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """[positions, 2 D]: per position D cosines, then D sines, those of the first half negated.

    Angles are computed in float32 and rounded to `dtype` last, as transformers does.
    """
    inv_freq = torch.tensor(config.rope.inv_freq, dtype=torch.float32)
    angles = torch.arange(positions, dtype=torch.float32)[:, None] * inv_freq
    cos, sin = (part * config.rope.attention_factor for part in (angles.cos(), angles.sin()))
    return torch.cat((cos, cos, -sin, sin), dim=-1).to(device=device, dtype=dtype)
