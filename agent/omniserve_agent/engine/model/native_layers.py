"""Layers and linear layers through the native library: bfloat16 on a CPU that multiplies it.

One call before attention and one after it, instead of some thirty torch operations: for few rows
those cost as much as reading the weights. Every rounding is where `layers` has it.
"""

from __future__ import annotations

import torch

from omniserve_agent.engine.model.config import ModelConfig
from omniserve_agent.engine.model.layer_weights import LayerWeights, LinearWeight
from omniserve_native import (
    DenseLayer,
    DenseLinear,
    DenseScratch,
    DenseShape,
    DenseWeights,
    Weight,
    Workers,
    dense_supported,
)


def is_native(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the native layers can run this model here."""
    sizes = (config.hidden_size, config.intermediate_size, config.head_size)
    even = all(size % 2 == 0 for size in sizes)
    return device.type == "cpu" and dtype == torch.bfloat16 and even and dense_supported()


class NativeLayers:
    """Makes the layers of one model; they share row buffers and `helpers`, threads on the other
    device cores."""

    def __init__(self, config: ModelConfig, helpers: Workers | None) -> None:
        self._helpers = helpers
        self._shape = DenseShape(
            hidden=config.hidden_size,
            intermediate=config.intermediate_size,
            q_heads=config.q_heads,
            kv_heads=config.kv_heads,
            head_size=config.head_size,
            rms_eps=config.rms_eps,
        )
        self._scratch = DenseScratch(self._shape)

    def layer(self, weights: LayerWeights) -> NativeLayer:
        """The tensors are copied and may go afterwards."""
        addresses = DenseWeights(
            qkv=_weight(weights.qkv),
            o=_weight(weights.o),
            gate_up=_weight(weights.gate_up),
            down=_weight(weights.down),
            input_norm=weights.input_norm.data_ptr(),
            mlp_norm=weights.mlp_norm.data_ptr(),
            qk_norm=0 if weights.qk_norm is None else weights.qk_norm.data_ptr(),
        )
        return NativeLayer(DenseLayer(self._shape, addresses, self._scratch, self._helpers))

    def linear(self, weight: LinearWeight) -> NativeLinear:
        """The tensors are copied and may go afterwards."""
        outputs, inputs = weight.weight.shape
        return NativeLinear(DenseLinear(_weight(weight), outputs, inputs, self._helpers))


class NativeLayer:
    """See `layers.DenseModules`."""

    __slots__ = ("_dense", "_q_end", "_qkv_size", "_v_start")

    def __init__(self, dense: DenseLayer) -> None:
        shape = dense.shape
        self._dense, self._qkv_size = dense, shape.qkv_size
        self._q_end = shape.q_heads * shape.head_size
        self._v_start = self._q_end + shape.kv_heads * shape.head_size

    def pre_attention(
        self, x: torch.Tensor, rope: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See `layers.DenseModules`."""
        rows = x.shape[0]
        qkv = torch.empty(rows, self._qkv_size, dtype=torch.bfloat16)
        self._dense.before(
            rows, x.data_ptr(), x.stride(0), rope.data_ptr(), rope.stride(0), qkv.data_ptr()
        )
        q_end, v_start = self._q_end, self._v_start
        return qkv[:, :q_end], qkv[:, q_end:v_start], qkv[:, v_start:]

    def post_attention(self, o: torch.Tensor, x: torch.Tensor) -> None:
        """See `layers.DenseModules`."""
        self._dense.after(x.shape[0], o.data_ptr(), o.stride(0), x.data_ptr(), x.stride(0))


class NativeLinear:
    """See `linear.Linear`."""

    __slots__ = ("_linear",)

    def __init__(self, linear: DenseLinear) -> None:
        self._linear = linear

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.shape[0]
        y = torch.empty(rows, self._linear.outputs, dtype=torch.bfloat16)
        if rows:
            self._linear.run(rows, x.data_ptr(), x.stride(0), y.data_ptr(), y.stride(0))
        return y


def _weight(weight: LinearWeight) -> Weight:
    bias = 0 if weight.bias is None else weight.bias.data_ptr()
    return Weight(weight.weight.data_ptr(), bias)
