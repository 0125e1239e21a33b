"""The dense benchmark's passes compute the same, and its arithmetic; not how fast."""

from __future__ import annotations

import pytest
import torch

import dense
from dense_passes import (
    BF16,
    MODELS,
    Modules,
    Products,
    Weights,
    by_torch,
    by_torch_in_float32,
    llama,
    weight_count,
)
from kernel_bounds import Turn
from omniserve_agent.engine.model.native_layers import NativeLayers
from omniserve_native import dense_supported

SMALL = llama(2, 64, 96, (4, 2), 16, vocab=100)


def test_smollm2_has_the_weights_of_its_products() -> None:
    norms = 61 * 576
    assert weight_count(MODELS["smollm2-135m"]) == 134_515_008 - norms


def test_a_layer_without_a_head() -> None:
    config = llama(1, 64, 96, (4, 2), 16, vocab=0)
    weights = Weights(config, seed=0)
    assert weights.head is None
    assert sum(one.weight.numel() for one in weights.linears()) == weight_count(config)


@pytest.mark.skipif(not dense_supported(), reason="the ISA path in use has no dense modules")
@pytest.mark.parametrize("rows", [1, 3])
def test_all_sides_multiply_the_same(rows: int) -> None:
    weights = Weights(SMALL, seed=0)
    native = NativeLayers(SMALL, None)
    with torch.inference_mode():
        sides = [
            list(Products(weights, 3, make, dtype).outputs(rows))
            for make, dtype in (
                (native.linear, BF16),
                (by_torch, BF16),
                (by_torch_in_float32, torch.float32),
            )
        ]
        Modules(weights, 3, native).run(rows)
    assert [len(side) for side in sides] == [9, 9, 9]
    for ours, plain, right in zip(*sides, strict=True):
        for found in (ours, plain):
            torch.testing.assert_close(found.float(), right, rtol=2**-7, atol=1e-3)


@pytest.mark.skipif(not dense_supported(), reason="the ISA path in use has no dense modules")
def test_modules_without_a_head_run() -> None:
    config = llama(1, 64, 96, (4, 2), 16, vocab=0)
    with torch.inference_mode():
        Modules(Weights(config, seed=0), 2, NativeLayers(config, None)).run(2)


def turn(gbps: float, gmacs: float, ms: float) -> Turn:
    ways = {"roof 1 streams": gbps * 0.7, "roof 4 streams": gbps}
    factors = zip(dense.SIDES, (2, 1, 4, 3), strict=True)
    sides = {name: ms * factor / 1e3 for name, factor in factors}
    return ways | {dense.GMACS: gmacs} | sides


def test_where_memory_binds() -> None:
    turns = [turn(gbps=20.0, gmacs=50.0, ms=ms) for ms in (20.0, 16.0, 12.0)]
    row = dense.row_of(1, 1, weights=100_000_000, turns=turns)
    assert (row["roof_ms"], row["multiply_ms"], row["bound_ms"]) == (10.0, 2.0, 10.0)
    assert row["roof_way"] == "4 streams"
    assert (row["native_ms"], row["native_ms_range"]) == (16.0, [12.0, 20.0])
    assert (row["native_over_bound"], row["native_over_bound_range"]) == (1.6, [1.2, 2.0])
    assert row["engine_over_bound"] == 3.2
    assert (row["torch_over_native"], row["float32_over_native"]) == (4.0, 3.0)


def test_where_multiply_adds_bind_the_best_turn_of_them_counts() -> None:
    turns = [turn(gbps=20.0, gmacs=gmacs, ms=40.0) for gmacs in (5.0, 50.0, 40.0)]
    row = dense.row_of(2, 16, weights=100_000_000, turns=turns)
    assert (row["roof_ms"], row["multiply_ms"], row["bound_ms"]) == (10.0, 32.0, 32.0)
    assert row["native_over_bound"] == 1.25


def test_as_many_turns_as_there_is_time_for() -> None:
    assert [dense.turns_within(2.0, turn_s) for turn_s in (0.01, 0.25, 5.0)] == [15, 8, 3]
