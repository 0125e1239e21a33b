"""What the dense modules refuse: errors name the field, its value and what would be right."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

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
from omniserve_native.library import ffi, lib

pytestmark = pytest.mark.skipif(not dense_supported(), reason="this ISA path has no dense modules")

OUTPUTS, INPUTS = 6, 4
SIZES = {"hidden": 8, "intermediate": 6, "q_heads": 2, "kv_heads": 1, "head_size": 4}
QKV = (SIZES["q_heads"] + 2 * SIZES["kv_heads"]) * SIZES["head_size"]
MEMORY = ffi.new("char[]", 1 << 16)
ROWS = ffi.cast("void *", (int(ffi.cast("uintptr_t", MEMORY)) // 64 + 1) * 64)  # aligned


def refusal(answer: Any) -> str:
    """The line of a call that failed."""
    assert answer == ffi.NULL or (isinstance(answer, int) and answer == lib.os_last_status() == -1)
    return ffi.string(lib.os_last_error()).decode()


def config(**changed: Any) -> Any:
    made = ffi.new("os_dense_config *", SIZES | {"rms_eps": 1e-5})
    for name in ("qkv", "o", "gate_up", "down"):
        getattr(made, name).values = ROWS
    made.input_norm = made.mlp_norm = ROWS
    for name, value in changed.items():
        setattr(made, name, value)
    return made


@pytest.fixture(scope="module")
def linear() -> Any:
    weight = ffi.new("os_weight *", {"values": ROWS})
    return ffi.gc(lib.os_linear_create(weight, OUTPUTS, INPUTS), lib.os_linear_destroy)


@pytest.fixture(scope="module")
def dense() -> Any:
    return ffi.gc(lib.os_dense_create(config(), ROWS), lib.os_dense_destroy)


def test_missing_objects(linear: Any) -> None:
    null = ffi.NULL
    assert refusal(lib.os_linear_create(null, 1, 2)) == (
        "weight is NULL; it must point at an os_weight"
    )
    assert refusal(lib.os_linear_run(null, null, 1, ROWS, INPUTS, ROWS, OUTPUTS)) == (
        "linear is NULL; it must be an os_linear"
    )
    for answer in (lib.os_dense_create(null, ROWS), lib.os_dense_scratch_bytes(null)):
        assert refusal(answer) == "config is NULL; it must point at an os_dense_config"
    assert refusal(lib.os_dense_before(null, null, 1, ROWS, 8, ROWS, 8, ROWS, QKV)) == (
        "dense is NULL; it must be an os_dense"
    )
    assert "y is NULL; it must hold rows of 6 bfloat16" in refusal(
        lib.os_linear_run(linear, null, 1, ROWS, INPUTS, null, OUTPUTS)
    )


@pytest.mark.parametrize("stride", [-INPUTS, 0, INPUTS - 1, 1 << 31])
def test_strides_of_a_linear_layer(linear: Any, stride: int) -> None:
    wrong = f"_stride is {stride}; it must lie between"
    x = lib.os_linear_run(linear, ffi.NULL, 2, ROWS, stride, ROWS, OUTPUTS)
    assert refusal(x).startswith(f"x{wrong} {INPUTS} and")
    y = lib.os_linear_run(linear, ffi.NULL, 2, ROWS, INPUTS, ROWS, stride)
    assert refusal(y).startswith(f"y{wrong} {OUTPUTS} and")


@pytest.mark.parametrize(("name", "width"), [("x", 8), ("rope", 8), ("qkv", QKV)])
def test_strides_before_attention(dense: Any, name: str, width: int) -> None:
    strides = {"x": 8, "rope": 8, "qkv": QKV} | {name: width - 1}
    rows = [part for stride in strides.values() for part in (ROWS, stride)]
    assert refusal(lib.os_dense_before(dense, ffi.NULL, 1, *rows)).startswith(
        f"{name}_stride is {width - 1}; it must lie between {width} and"
    )


@pytest.mark.parametrize("name", ["o", "x"])
def test_strides_after_attention(dense: Any, name: str) -> None:
    strides = {"o": 8, "x": 8} | {name: -1}
    rows = [part for stride in strides.values() for part in (ROWS, stride)]
    assert refusal(lib.os_dense_after(dense, ffi.NULL, 1, *rows)).startswith(
        f"{name}_stride is -1; it must lie between 8 and"
    )


@pytest.mark.parametrize("sizes", [(1 << 16, 1, 1 << 16), (1, 1 << 16, 1 << 8), (127, 1, 1 << 17)])
def test_heads_that_are_too_many_together(sizes: tuple[int, int, int]) -> None:
    q_heads, kv_heads, head_size = sizes
    wrong = config(q_heads=q_heads, kv_heads=kv_heads, head_size=head_size)
    limit = (1 << 24) // (q_heads + 2 * kv_heads)
    for answer in (lib.os_dense_scratch_bytes(wrong), lib.os_dense_create(wrong, ROWS)):
        assert refusal(answer) == (
            f"head_size is {head_size}; with {q_heads} q_heads and {kv_heads} kv_heads "
            f"it must be at most {limit}"
        )


@pytest.mark.parametrize("eps", [-1e-5, 2.0, np.nan])
def test_epsilon(eps: float) -> None:
    assert "rms_eps is" in refusal(lib.os_dense_create(config(rms_eps=eps), ROWS))


def test_scratch_off_its_line() -> None:
    assert "its address must be a multiple of 64" in refusal(
        lib.os_dense_create(config(), ffi.cast("char *", ROWS) + 2)
    )


def test_closed_helpers() -> None:
    at = int(ffi.cast("uintptr_t", ROWS))
    shape, weight, helpers = DenseShape(**SIZES, rms_eps=1e-5), Weight(at), Workers(1)
    weights = DenseWeights(weight, weight, weight, weight, input_norm=at, mlp_norm=at)
    layer = DenseLayer(shape, weights, DenseScratch(shape), helpers)
    linear = DenseLinear(weight, OUTPUTS, INPUTS, helpers)
    helpers.close()
    for call in (
        lambda: layer.before(1, at, 8, at, 8, at),
        lambda: layer.after(1, at, 8, at, 8),
        lambda: linear.run(1, at, INPUTS, at, OUTPUTS),
    ):
        with pytest.raises(ValueError, match="these workers are closed"):
            call()
