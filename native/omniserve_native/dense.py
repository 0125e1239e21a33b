"""Dense modules in bfloat16 on the CPU: one linear layer, or a layer's halves around attention."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from omniserve_native.library import Pointer, checked, created, ffi, lib, pointer
from omniserve_native.workers import Workers

SCRATCH_ALIGNMENT_BYTES = 64


def dense_supported() -> bool:
    """Whether the ISA path in use is AVX2 or AVX-512; else the classes here raise."""
    return bool(lib.os_dense_supported())


@dataclass(frozen=True)
class Weight:
    """Addresses of bfloat16 values [outputs][inputs] and bias [outputs] (0: none)."""

    values: int
    bias: int = 0


@dataclass(frozen=True)
class DenseShape:
    """Sizes of a layer, all even."""

    hidden: int
    intermediate: int
    q_heads: int
    kv_heads: int
    head_size: int
    rms_eps: float

    @property
    def qkv_size(self) -> int:
        """Elements of a row of q, k and v."""
        return (self.q_heads + 2 * self.kv_heads) * self.head_size


@dataclass(frozen=True)
class DenseWeights:
    """A layer's weights; norms are addresses of bfloat16 [hidden], `qk_norm` of
    [q_heads + kv_heads][head_size] or 0."""

    qkv: Weight
    o: Weight
    gate_up: Weight
    down: Weight
    input_norm: int
    mlp_norm: int
    qk_norm: int = 0


class DenseLinear:
    """y = x W^T + bias. The weight is packed and copied. Raises NativeError."""

    def __init__(
        self, weight: Weight, outputs: int, inputs: int, helpers: Workers | None = None
    ) -> None:
        self.outputs = outputs
        self._helpers = helpers
        packed = created(lib.os_linear_create(_weight(weight), outputs, inputs))
        self._handle = ffi.gc(packed, lib.os_linear_destroy)

    def run(self, rows: int, x: int, x_stride: int, y: int, y_stride: int) -> None:
        """Addresses of bfloat16 rows; strides in elements."""
        checked(
            lib.os_linear_run(
                self._handle,
                _workers(self._helpers),
                rows,
                pointer(x),
                x_stride,
                pointer(y),
                y_stride,
            )
        )


class DenseScratch:
    """Rows between the products; shared by the layers that one thread runs."""

    def __init__(self, shape: DenseShape) -> None:
        rows_bytes = checked(lib.os_dense_scratch_bytes(_sizes(shape)))
        self._memory = np.zeros(rows_bytes + SCRATCH_ALIGNMENT_BYTES, np.uint8)
        self.address = -(-self._memory.ctypes.data // SCRATCH_ALIGNMENT_BYTES)
        self.address *= SCRATCH_ALIGNMENT_BYTES


class DenseLayer:
    """One layer without its attention. Weights are packed and copied. Raises NativeError."""

    def __init__(
        self,
        shape: DenseShape,
        weights: DenseWeights,
        scratch: DenseScratch,
        helpers: Workers | None = None,
    ) -> None:
        self.shape = shape
        self._scratch, self._helpers = scratch, helpers
        config = _config(shape, weights)
        dense = created(lib.os_dense_create(config, pointer(scratch.address)))
        self._handle = ffi.gc(dense, lib.os_dense_destroy)

    def before(
        self, rows: int, x: int, x_stride: int, rope: int, rope_stride: int, qkv: int
    ) -> None:
        """Norm, QKV, rotary: addresses of bfloat16 rows; qkv [rows][qkv_size] is dense."""
        cast = ffi.cast
        checked(
            lib.os_dense_before(
                self._handle,
                _workers(self._helpers),
                rows,
                cast("void *", x),
                x_stride,
                cast("void *", rope),
                rope_stride,
                cast("void *", qkv),
                self.shape.qkv_size,
            )
        )

    def after(self, rows: int, o: int, o_stride: int, x: int, x_stride: int) -> None:
        """Adds attention's output, then the MLP, to x in place."""
        cast = ffi.cast
        checked(
            lib.os_dense_after(
                self._handle,
                _workers(self._helpers),
                rows,
                cast("void *", o),
                o_stride,
                cast("void *", x),
                x_stride,
            )
        )


def _workers(helpers: Workers | None) -> Pointer:
    return helpers.handle if helpers else ffi.NULL


def _weight(weight: Weight) -> Pointer:
    return ffi.new("os_weight *", {"values": pointer(weight.values), "bias": pointer(weight.bias)})


def _sizes(shape: DenseShape) -> Pointer:
    config = ffi.new("os_dense_config *")
    config.hidden, config.intermediate = shape.hidden, shape.intermediate
    config.q_heads, config.kv_heads = shape.q_heads, shape.kv_heads
    config.head_size, config.rms_eps = shape.head_size, shape.rms_eps
    return config


def _config(shape: DenseShape, weights: DenseWeights) -> Pointer:
    config = _sizes(shape)
    for name in ("qkv", "o", "gate_up", "down"):
        setattr(config, name, _weight(getattr(weights, name))[0])
    config.input_norm = pointer(weights.input_norm)
    config.mlp_norm = pointer(weights.mlp_norm)
    config.qk_norm = pointer(weights.qk_norm)
    return config
