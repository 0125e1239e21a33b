"""A model without weights: its layers take a profile's time and hand out fixed, finite rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

from omniserve_agent.engine.emulation.timeline import Timeline
from omniserve_agent.engine.messages import EngineConfig
from omniserve_agent.engine.model.config import ModelConfig, parse_dtype
from omniserve_agent.engine.model.errors import ModelError
from omniserve_agent.engine.model.model import Model, model_positions
from omniserve_agent.scheduling.latency import LatencyModel
from omniserve_agent.scheduling.plan import STAGED_CHUNK_ROWS
from omniserve_agent.simulation.emulated import EmulatedDevice, Heads, emulated_device
from omniserve_native import MAX_Q_LEN

PRE_ATTENTION_SHARE = 0.25  # of a layer's dense time: norm, QKV and rotary of Llama-like layers
# Smaller ids are often control tokens and single bytes; among larger ones, which are rarer words,
# are parts of characters: their text would wait for the next token.
PLAIN_TOKENS = range(1000, 3000)
PEAK_LOGIT = 10.0


@dataclass(frozen=True, slots=True)
class Emulation:
    """A device of the profile and its time."""

    device: EmulatedDevice
    timeline: Timeline

    @property
    def latency(self) -> LatencyModel:
        """What the profile says."""
        return self.device.hardware.latency


@dataclass(frozen=True, slots=True)
class EmulatedModel(Model):
    """A `Model` whose device is emulated."""

    emulation: Emulation


@dataclass(frozen=True, slots=True)
class EmulatedLayer:
    """See `layers.DenseModules`. q, k and v are the same rows in every layer."""

    emulation: Emulation
    q: torch.Tensor  # [capacity, Hq D]
    k: torch.Tensor  # [capacity, Hkv D]
    v: torch.Tensor

    def pre_attention(
        self, x: torch.Tensor, rope: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See `DenseModules`."""
        rows = x.shape[0]
        self._take(PRE_ATTENTION_SHARE, rows)
        return self.q[:rows], self.k[:rows], self.v[:rows]

    def post_attention(self, o: torch.Tensor, x: torch.Tensor) -> None:
        """See `DenseModules`; the residual stays as it is."""
        self._take(1.0 - PRE_ATTENTION_SHARE, x.shape[0])

    def _take(self, share: float, rows: int) -> None:
        self.emulation.timeline.spend(share * self.emulation.latency.dense.at(rows))


@dataclass(slots=True)
class EmulatedHead:
    """See `linear.Linear`. All rows of a call share one row of logits, so that sampling reads it
    from the cache; which token is likeliest changes from call to call (Weyl's sequence)."""

    emulation: Emulation
    tokens: range  # that may be likeliest
    row: torch.Tensor  # float32 [1, V]
    calls: int = field(default=0)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x [R, H] -> float32 [R, V], a view."""
        rows = x.shape[0]
        self.emulation.timeline.spend(self.emulation.latency.head.at(rows))
        self.row[0, self._token()] = 0.0
        self.calls += 1
        self.row[0, self._token()] = PEAK_LOGIT
        return self.row.expand(rows, -1)

    def _token(self) -> int:
        return self.tokens[self.calls * 40503 % len(self.tokens)]


def emulated_model(config: EngineConfig) -> EmulatedModel:
    """The model of this directory, its weights unread, on its emulated device. ModelError."""
    shape = ModelConfig.from_directory(Path(config.model_dir))
    heads = Heads(shape.layers, shape.q_heads, shape.kv_heads, shape.head_size)
    try:
        device = emulated_device(config.device, heads)
    except ValueError as error:
        raise ModelError(str(error)) from error
    dtype = parse_dtype(config.dtype) if config.dtype != "auto" else shape.torch_dtype
    return build_emulated(
        shape,
        Emulation(device, Timeline(device.noise, device.seed)),
        dtype or torch.bfloat16,
        model_positions(shape, config.max_model_len),
        _capacity(config),
    )


def build_emulated(
    shape: ModelConfig, emulation: Emulation, dtype: torch.dtype, positions: int, capacity: int
) -> EmulatedModel:
    """Buffers for `capacity` rows; requests of up to `positions` tokens."""
    generator = torch.Generator().manual_seed(0)

    def rows(width: int) -> torch.Tensor:
        return torch.randn(capacity, width, generator=generator).to(dtype)

    size, vocabulary = shape.head_size, shape.vocab_size
    layer = EmulatedLayer(
        emulation,
        rows(shape.q_heads * size),
        rows(shape.kv_heads * size),
        rows(shape.kv_heads * size),
    )
    plain = PLAIN_TOKENS if vocabulary > PLAIN_TOKENS.stop else range(vocabulary)
    return EmulatedModel(
        config=shape,
        dtype=dtype,
        device=torch.device("cpu"),
        embedding=torch.zeros(1, shape.hidden_size, dtype=dtype).expand(vocabulary, -1),
        layers=[layer] * shape.layers,
        final_norm=torch.ones(shape.hidden_size, dtype=dtype),
        head=EmulatedHead(emulation, plain, torch.zeros(1, vocabulary)),
        rope_rows=torch.zeros(positions, 2 * size, dtype=dtype),
        emulation=emulation,
    )


def _capacity(config: EngineConfig) -> int:
    prompts = config.ls_prefill_rows + config.be_prefill_rows
    batch = config.max_device_rows + prompts + MAX_Q_LEN * config.join_lanes
    return max(batch, STAGED_CHUNK_ROWS)
