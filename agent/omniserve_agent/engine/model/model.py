"""The dense part of a model: embedding, layers, head. Attention belongs to the executor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from omniserve_agent.engine.model.config import ModelConfig
from omniserve_agent.engine.model.errors import ModelError
from omniserve_agent.engine.model.layer_weights import LayerWeights, LinearWeight
from omniserve_agent.engine.model.layers import DenseModules, Layer, rms_norm, rope_table
from omniserve_agent.engine.model.linear import Linear, make_linear
from omniserve_agent.engine.model.native_layers import NativeLayers, is_native
from omniserve_agent.engine.model.progress import Progress
from omniserve_native import Workers

TensorSource = Callable[[str], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Model:
    """Weights on one device in one dtype. Callers run it under `torch.inference_mode()`."""

    config: ModelConfig
    dtype: torch.dtype
    device: torch.device
    embedding: torch.Tensor  # [V, H]
    layers: list[DenseModules]
    final_norm: torch.Tensor  # [H]
    head: Linear  # H -> V
    rope_rows: torch.Tensor  # [positions, 2 D]

    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """token_ids [N] int64 -> x [N, H], a fresh tensor."""
        return F.embedding(token_ids, self.embedding)

    def rope(self, positions: torch.Tensor) -> torch.Tensor:
        """positions [N] int64 -> [N, 2 D], what `pre_attention` wants beside the rows."""
        return self.rope_rows.index_select(0, positions)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Final norm and head: x [R, H] -> float32 [R, V]."""
        return self.head(rms_norm(x, self.final_norm, self.config.rms_eps)).float()

    @property
    def positions(self) -> int:
        """How many positions `rope` knows: the longest request in tokens."""
        return self.rope_rows.shape[0]


@torch.inference_mode()
def build_model(
    config: ModelConfig,
    source: TensorSource,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    max_positions: int | None = None,
    progress: Progress | None = None,
    helpers: Workers | None = None,
) -> Model:
    """Fuse, convert and place the tensors that `source` returns by checkpoint name.

    `helpers` are threads on the device's other cores, used by native layers.
    """
    target = torch.device(device)
    native = NativeLayers(config, helpers) if is_native(config, dtype, target) else None
    builder = _Builder(config, source, dtype, target, native)
    layers = []
    for index in range(config.layers):
        layers.append(builder.layer(f"model.layers.{index}."))
        if progress is not None:
            progress("loading weights", (index + 1) / config.layers)
    embedding = builder.tensor("model.embed_tokens.weight")
    head = embedding if config.tied_head else builder.tensor("lm_head.weight")
    positions = model_positions(config, max_positions)
    return Model(
        config=config,
        dtype=dtype,
        device=target,
        embedding=embedding,
        layers=layers,
        final_norm=builder.tensor("model.norm.weight"),
        head=builder.head(head),
        rope_rows=rope_table(config, positions, dtype, target),
    )


def model_positions(config: ModelConfig, wanted: int | None) -> int:
    """The longest request in tokens: as wanted, None: all the model computes. Raises ModelError."""
    if wanted is None:
        return config.max_position
    if not 0 < wanted <= config.max_position:
        why = " (its sliding window)" if config.sliding_window is not None else ""
        raise ModelError(
            f"a model length of {wanted} tokens is asked for, but this model computes "
            f"1 to {config.max_position} exactly{why}"
        )
    return wanted


@dataclass(frozen=True, slots=True)
class _Builder:
    config: ModelConfig
    source: TensorSource
    dtype: torch.dtype
    device: torch.device
    native: NativeLayers | None

    def tensor(self, *names: str) -> torch.Tensor:
        """The named tensors, stacked along their first dimension."""
        parts = [self.source(name).to(dtype=self.dtype) for name in names]
        whole = parts[0] if len(parts) == 1 else torch.cat(parts)
        return whole.to(self.device).contiguous()

    def linear(self, bias: bool, *modules: str) -> LinearWeight:
        weight = self.tensor(*(f"{module}.weight" for module in modules))
        return LinearWeight(
            weight, self.tensor(*(f"{module}.bias" for module in modules)) if bias else None
        )

    def head(self, weight: torch.Tensor) -> Linear:
        if self.native is not None:
            return self.native.linear(LinearWeight(weight))
        return make_linear(weight, None, self.device)

    def layer(self, prefix: str) -> DenseModules:
        weights = self.layer_weights(prefix)
        if self.native is not None:
            return self.native.layer(weights)
        return Layer.of(self.config, weights, self.device)

    def layer_weights(self, prefix: str) -> LayerWeights:
        config, attention, mlp = self.config, f"{prefix}self_attn.", f"{prefix}mlp."
        return LayerWeights(
            input_norm=self.tensor(f"{prefix}input_layernorm.weight"),
            qkv=self.linear(config.qkv_bias, *(f"{attention}{part}_proj" for part in "qkv")),
            qk_norm=self.qk_norm(attention) if config.qk_norm else None,
            o=self.linear(config.o_bias, f"{attention}o_proj"),
            mlp_norm=self.tensor(f"{prefix}post_attention_layernorm.weight"),
            gate_up=self.linear(config.mlp_bias, f"{mlp}gate_proj", f"{mlp}up_proj"),
            down=self.linear(config.mlp_bias, f"{mlp}down_proj"),
        )

    def qk_norm(self, attention: str) -> torch.Tensor:
        q = self.tensor(f"{attention}q_norm.weight").expand(self.config.q_heads, -1)
        k = self.tensor(f"{attention}k_norm.weight").expand(self.config.kv_heads, -1)
        return torch.cat((q, k))
