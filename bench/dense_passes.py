"""One pass of a model's dense modules over some rows, for `dense.py`: as the engine runs them on
the CPU device, and their matrix products alone, by the native library or torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from omniserve_agent.engine.model.config import ModelConfig, Rope
from omniserve_agent.engine.model.layer_weights import LayerWeights, LinearWeight
from omniserve_agent.engine.model.layers import rope_table
from omniserve_agent.engine.model.linear import Linear, make_linear
from omniserve_agent.engine.model.model import Model
from omniserve_agent.engine.model.native_layers import NativeLayers
from omniserve_agent.engine.model.random_weights import STANDARD_DEVIATION

BF16, CPU = torch.bfloat16, torch.device("cpu")
ROPE_THETA = 10_000.0
Make = Callable[[LinearWeight], Linear]


def llama(
    layers: int, hidden: int, inner: int, heads: tuple[int, int], head_size: int, vocab: int
) -> ModelConfig:
    """`heads`: of queries and of KV. `vocab` 0: without a head."""
    pairs = range(0, head_size, 2)
    return ModelConfig(
        family="llama",
        layers=layers,
        hidden_size=hidden,
        intermediate_size=inner,
        q_heads=heads[0],
        kv_heads=heads[1],
        head_size=head_size,
        vocab_size=vocab,
        max_position=2048,
        rms_eps=1e-5,
        rope=Rope(tuple(ROPE_THETA ** (-pair / head_size) for pair in pairs)),
    )


MODELS = {
    "smollm2-135m": llama(30, 576, 1536, (9, 3), 64, vocab=49152),
    "llama-3-8b-layer": llama(1, 4096, 14336, (32, 8), 128, vocab=0),
}


def sizes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Outputs and inputs of a layer's products."""
    hidden, inner = config.hidden_size, config.intermediate_size
    q_size, kv_size = config.q_heads * config.head_size, config.kv_heads * config.head_size
    return {
        "qkv": (q_size + 2 * kv_size, hidden),
        "o": (hidden, q_size),
        "gate_up": (2 * inner, hidden),
        "down": (hidden, inner),
    }


def weight_count(config: ModelConfig) -> int:
    """Weights of a pass's products, and the multiply-adds that a row needs."""
    layer = sum(outputs * inputs for outputs, inputs in sizes(config).values())
    return config.layers * layer + config.vocab_size * config.hidden_size


class Weights:
    """Random ones, for every kind of pass the same."""

    def __init__(self, config: ModelConfig, seed: int) -> None:
        self.config = config
        self._generator = torch.Generator().manual_seed(seed)
        self.norm = torch.ones(config.hidden_size, dtype=BF16)
        self.layers = [self._layer() for _ in range(config.layers)]
        vocab = config.vocab_size
        self.head = self._draw((vocab, config.hidden_size)) if vocab else None

    def _draw(self, size: tuple[int, int]) -> LinearWeight:
        values = torch.randn(size, generator=self._generator).mul_(STANDARD_DEVIATION)
        return LinearWeight(values.to(BF16))

    def _layer(self) -> LayerWeights:
        size = sizes(self.config)
        return LayerWeights(
            input_norm=self.norm,
            qkv=self._draw(size["qkv"]),
            qk_norm=None,
            o=self._draw(size["o"]),
            mlp_norm=self.norm,
            gate_up=self._draw(size["gate_up"]),
            down=self._draw(size["down"]),
        )

    def linears(self) -> Iterator[LinearWeight]:
        """In the order of a pass."""
        for layer in self.layers:
            yield from (layer.qkv, layer.o, layer.gate_up, layer.down)
        if self.head is not None:
            yield self.head


class Products:
    """The products alone, in `dtype`, each of inputs that were there before."""

    def __init__(self, weights: Weights, most_rows: int, make: Make, dtype: torch.dtype) -> None:
        linears = list(weights.linears())
        self._products = [(make(linear), linear.weight.shape[1]) for linear in linears]
        generator = torch.Generator().manual_seed(0)
        self._inputs = {
            width: torch.randn(most_rows, width, generator=generator).to(BF16).to(dtype)
            for width in sorted({width for _, width in self._products})
        }

    def outputs(self, rows: int) -> Iterator[torch.Tensor]:
        """One product after the other."""
        inputs = {width: x[:rows] for width, x in self._inputs.items()}
        for linear, width in self._products:
            yield linear(inputs[width])

    def run(self, rows: int) -> None:
        """All of them."""
        for _ in self.outputs(rows):
            pass


def by_torch(linear: LinearWeight) -> Linear:
    """As the engine multiplies bfloat16 without native layers: packed where the CPU has it."""
    return make_linear(linear.weight, None, CPU)


def by_torch_in_float32(linear: LinearWeight) -> Linear:
    """Twice the bytes; every CPU multiplies them."""
    return make_linear(linear.weight.float(), None, CPU)


class Modules:
    """What the engine runs: norms, rotary embedding and gates too, but no attention."""

    def __init__(self, weights: Weights, most_rows: int, native: NativeLayers) -> None:
        config = weights.config
        self._has_head = weights.head is not None
        self._model = Model(
            config=config,
            dtype=BF16,
            device=CPU,
            embedding=torch.empty(0, config.hidden_size, dtype=BF16),
            layers=[native.layer(layer) for layer in weights.layers],
            final_norm=weights.norm,
            head=torch.nn.Identity() if weights.head is None else native.linear(weights.head),
            rope_rows=rope_table(config, most_rows, BF16, CPU),
        )
        generator = torch.Generator().manual_seed(0)
        self._x = torch.randn(most_rows, config.hidden_size, generator=generator).to(BF16)

    def run(self, rows: int) -> None:
        """Queries take the place of attention's output."""
        x, rope = self._x[:rows].clone(), self._model.rope_rows[:rows]
        for layer in self._model.layers:
            q, _, _ = layer.pre_attention(x, rope)
            layer.post_attention(q, x)
        if self._has_head:
            self._model.logits(x)
