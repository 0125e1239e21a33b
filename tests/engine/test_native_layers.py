"""Native layers against the torch ones: the same roundings, whatever rows share a call."""

from dataclasses import replace

import pytest
import torch

from omniserve_agent.engine.model.config import ModelConfig
from omniserve_agent.engine.model.layer_weights import LayerWeights, LinearWeight
from omniserve_agent.engine.model.layers import Layer, rope_table
from omniserve_agent.engine.model.native_layers import NativeLayers, is_native
from omniserve_native import (
    DenseLinear,
    DenseScratch,
    DenseShape,
    NativeError,
    Weight,
    Workers,
    dense_supported,
)
from support.isa_paths import available_isas, in_process
from support.tiny_models import TINY_MODELS

BF16, CPU = torch.bfloat16, torch.device("cpu")

pytestmark = pytest.mark.skipif(
    not dense_supported(), reason="the ISA path in use has no dense modules"
)


def signs(generator, *shape):
    """Sums of few-bit numbers times these are exact, in any order."""
    values = torch.randint(-1, 2, shape, generator=generator)
    return values.to(BF16)


def layer_weights(config, generator, biased=True):
    hidden, inner, size = config.hidden_size, config.intermediate_size, config.head_size
    q_size, kv_size = config.q_heads * size, config.kv_heads * size

    def linear(outputs, inputs):
        bias = signs(generator, outputs) if biased else None
        return LinearWeight(signs(generator, outputs, inputs) / 16, bias)

    def norm(*shape):
        return (1 + torch.rand(shape, generator=generator)).to(BF16)

    return LayerWeights(
        input_norm=norm(hidden),
        qkv=linear(q_size + 2 * kv_size, hidden),
        qk_norm=norm(config.q_heads + config.kv_heads, size) if config.qk_norm else None,
        o=linear(hidden, q_size),
        mlp_norm=norm(hidden),
        gate_up=linear(2 * inner, hidden),
        down=linear(hidden, inner),
    )


def differing(found, expected):
    """Share of elements that differ, and the largest difference in units of the last place."""
    steps = (found.double() - expected.double()).abs() / (expected.double().abs() * 2.0**-8 + 2e-3)
    return (found != expected).double().mean().item(), steps.max().item()


@pytest.mark.parametrize("rows", [1, 2, 7, 12, 13, 25, 128, 131])
@pytest.mark.parametrize("name", TINY_MODELS)
def test_layers_round_where_the_torch_ones_round(name, rows, tiny_model_dir):
    config = ModelConfig.from_directory(tiny_model_dir(name))
    generator = torch.Generator().manual_seed(rows)
    weights = layer_weights(config, generator, biased=rows % 2 == 1)
    reference, native = (
        Layer.of(config, weights, CPU),
        NativeLayers(config, None).layer(weights),
    )
    x = torch.randn(rows, config.hidden_size, generator=generator).to(BF16)
    o = torch.randn(rows, config.q_heads * config.head_size, generator=generator).to(BF16)
    rope = rope_table(config, rows, BF16, CPU)
    with torch.inference_mode():
        for found, expected in zip(
            native.pre_attention(x, rope), reference.pre_attention(x, rope), strict=True
        ):
            share, steps = differing(found, expected)
            assert share < 0.01
            assert steps < 4  # a flipped rounding before a norm and a rotation
        ours, theirs = x.clone(), x.clone()
        native.post_attention(o, ours)
        reference.post_attention(o, theirs)
    share, steps = differing(ours, theirs)
    assert share < 0.02
    assert steps < 4


def test_a_row_does_not_depend_on_its_neighbours(tiny_model_dir):
    config = ModelConfig.from_directory(tiny_model_dir("qwen3-group5-head96"))
    generator = torch.Generator().manual_seed(2)
    layer = NativeLayers(config, None).layer(layer_weights(config, generator))
    x = torch.randn(150, config.hidden_size, generator=generator).to(BF16)
    o = torch.randn(150, config.q_heads * config.head_size, generator=generator).to(BF16)
    rope = rope_table(config, 150, BF16, CPU)
    together = layer.pre_attention(x, rope)
    after = x.clone()
    layer.post_attention(o, after)
    for row in (0, 77, 149):
        one = slice(row, row + 1)
        for many, alone in zip(together, layer.pre_attention(x[one], rope[one]), strict=True):
            assert torch.equal(many[one], alone)
        x_alone = x[one].clone()
        layer.post_attention(o[one], x_alone)
        assert torch.equal(after[one], x_alone)


def test_helpers_change_nothing(tiny_model_dir):
    config = ModelConfig.from_directory(tiny_model_dir("llama-group3-head64-tied"))
    weights = layer_weights(config, torch.Generator().manual_seed(3))
    x = torch.randn(20, config.hidden_size, generator=torch.Generator().manual_seed(4)).to(BF16)
    rope = rope_table(config, 20, BF16, CPU)
    alone = NativeLayers(config, None).layer(weights).pre_attention(x, rope)
    with Workers(2) as helpers:
        shared = NativeLayers(config, helpers).layer(weights).pre_attention(x, rope)
    for one, other in zip(alone, shared, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("outputs", [1, 16, 31, 33, 96])
@pytest.mark.parametrize("inputs", [2, 30, 576])
def test_linear_sizes(outputs, inputs):
    generator = torch.Generator().manual_seed(outputs)
    weight = torch.randn(outputs, inputs, generator=generator).to(BF16)
    bias = torch.randn(outputs, generator=generator).to(BF16)
    linear = DenseLinear(Weight(weight.data_ptr(), bias.data_ptr()), outputs, inputs)
    x = torch.randn(5, inputs, generator=generator).to(BF16)
    y = torch.full((5, outputs + 3), 7.0, dtype=BF16)
    linear.run(5, x.data_ptr(), x.stride(0), y.data_ptr(), y.stride(0))
    expected = x.double() @ weight.double().T + bias.double()
    torch.testing.assert_close(y[:, :outputs].double(), expected, atol=0.05, rtol=0.01)
    assert (y[:, outputs:] == 7).all()


@pytest.mark.parametrize("value", [0.0, -0.5, 89.0, -89.0, -200.0, 1e30, -1e30, float("nan")])
def test_silu_at_its_ends(value, tiny_model_dir):
    config = ModelConfig.from_directory(tiny_model_dir("llama-group3-head64-tied"))
    hidden, inner = config.hidden_size, config.intermediate_size
    gate_bias = torch.cat((torch.full((inner,), value), torch.ones(inner))).to(BF16)
    down = torch.zeros(hidden, inner)
    down[:, 0] = 1
    zero = torch.zeros(hidden, config.q_heads * config.head_size, dtype=BF16)
    weights = replace(
        layer_weights(config, torch.Generator().manual_seed(1), biased=False),
        o=LinearWeight(zero),
        gate_up=LinearWeight(torch.zeros(2 * inner, hidden, dtype=BF16), gate_bias),
        down=LinearWeight(down.to(BF16)),
    )
    x = torch.zeros(1, hidden, dtype=BF16)
    NativeLayers(config, None).layer(weights).post_attention(zero[:1, : zero.shape[1]], x)
    expected = torch.nn.functional.silu(torch.tensor(value).to(BF16))
    torch.testing.assert_close(x[0, 0], expected, equal_nan=True)


@pytest.mark.parametrize("isa", ["avx512_bf16", "avx512", "avx2"])
def test_every_isa_path_keeps_to_this_file(isa):
    if isa not in available_isas():
        pytest.skip(f"this machine has no {isa}")
    arguments = [__file__, "-q", "-k", "not every_isa"]
    answer = in_process(isa, f"import pytest; raise SystemExit(pytest.main({arguments!r}))")
    assert answer.returncode == 0, answer.stdout[-3000:]


def test_native_only_where_it_is_right(tiny_model_dir):
    config = ModelConfig.from_directory(tiny_model_dir("llama-group3-head64-tied"))
    assert is_native(config, BF16, CPU)
    assert not is_native(config, torch.float32, CPU)
    assert not is_native(config, BF16, torch.device("cuda"))


def test_errors_name_the_argument():
    weight = torch.zeros(4, 3, dtype=BF16)
    with pytest.raises(NativeError, match="inputs is 3; it must be even"):
        DenseLinear(Weight(weight.data_ptr()), 4, 3)
    with pytest.raises(NativeError, match=r"weight.values is NULL"):
        DenseLinear(Weight(0), 4, 4)
    with pytest.raises(NativeError, match="head_size"):
        DenseScratch(DenseShape(64, 128, 2, 1, 31, 1e-5))
    linear = DenseLinear(Weight(torch.zeros(4, 4, dtype=BF16).data_ptr()), 4, 4)
    with pytest.raises(NativeError, match="rows"):
        linear.run(0, 1, 4, 1, 4)
