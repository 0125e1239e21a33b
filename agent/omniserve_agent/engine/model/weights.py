"""Weights from a directory of safetensors files: checked against the configuration, then fused."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from omniserve_agent.engine.model.config import ModelConfig, parse_dtype
from omniserve_agent.engine.model.errors import ModelError
from omniserve_agent.engine.model.model import Model, build_model
from omniserve_agent.engine.model.progress import Progress
from omniserve_native import Workers

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
NAMED_IN_ERRORS = 8


def load_model(
    model_dir: str | Path,
    dtype: str = "auto",
    device: torch.device | str = "cpu",
    max_positions: int | None = None,
    progress: Progress | None = None,
    helpers: Workers | None = None,
) -> Model:
    """Load a model directory. `dtype` auto: the configuration's own, else the checkpoint's.

    `max_positions` bounds the rotary table to the longest request in tokens. Raises ModelError.
    """
    directory = Path(model_dir)
    config = ModelConfig.from_directory(directory)
    with ExitStack() as files:
        checkpoint = Checkpoint(directory, files)
        checkpoint.check(expected_shapes(config))
        chosen = _choose_dtype(dtype, config, checkpoint)
        return build_model(
            config, checkpoint.tensor, chosen, device, max_positions, progress, helpers
        )


def _choose_dtype(wanted: str, config: ModelConfig, checkpoint: Checkpoint) -> torch.dtype:
    if wanted != "auto":
        return parse_dtype(wanted)
    return config.torch_dtype or checkpoint.tensor("model.norm.weight").dtype


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a checkpoint of this configuration; a tied head has no tensor."""
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config.vocab_size, config.hidden_size),
        "model.norm.weight": (config.hidden_size,),
    }
    if not config.tied_head:
        shapes["lm_head.weight"] = (config.vocab_size, config.hidden_size)
    for index in range(config.layers):
        for name, shape in _layer_shapes(config).items():
            shapes[f"model.layers.{index}.{name}"] = shape
    return shapes


def _layer_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    hidden, inner = config.hidden_size, config.intermediate_size
    q_size, kv_size = config.q_heads * config.head_size, config.kv_heads * config.head_size
    linears = {
        "self_attn.q_proj": (q_size, hidden, config.qkv_bias),
        "self_attn.k_proj": (kv_size, hidden, config.qkv_bias),
        "self_attn.v_proj": (kv_size, hidden, config.qkv_bias),
        "self_attn.o_proj": (hidden, q_size, config.o_bias),
        "mlp.gate_proj": (inner, hidden, config.mlp_bias),
        "mlp.up_proj": (inner, hidden, config.mlp_bias),
        "mlp.down_proj": (hidden, inner, config.mlp_bias),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
    }
    for name, (rows, columns, bias) in linears.items():
        shapes[f"{name}.weight"] = (rows, columns)
        if bias:
            shapes[f"{name}.bias"] = (rows,)
    if config.qk_norm:
        shapes["self_attn.q_norm.weight"] = shapes["self_attn.k_norm.weight"] = (config.head_size,)
    return shapes


class Checkpoint:
    """Tensors by name over one or several files; opened by `files`, read one at a time."""

    def __init__(self, directory: Path, files: ExitStack) -> None:
        self.directory = directory
        self._holder = {}
        for path in _safetensors_files(directory):
            try:
                opened = files.enter_context(safe_open(path, framework="pt"))
            except (OSError, SafetensorError) as error:
                raise ModelError(f"{path} is not a readable safetensors file: {error}") from error
            self._holder.update(dict.fromkeys(opened.keys(), opened))

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor in the checkpoint's own dtype, on the CPU."""
        found: torch.Tensor = self._holder[name].get_tensor(name)
        return found

    def check(self, expected: dict[str, tuple[int, ...]]) -> None:
        """Raise ModelError naming tensors that are missing, unexpected or of another shape."""
        missing = expected.keys() - self._holder.keys()
        if missing:
            raise ModelError(f"{self.directory} lacks {_named(missing)}")
        unexpected = {name for name in self._holder.keys() - expected.keys() if not _unused(name)}
        if unexpected:
            raise ModelError(
                f"{self.directory} holds {_named(unexpected)}, which its config.json has no use for"
            )
        for name, shape in expected.items():
            found = tuple(self._holder[name].get_slice(name).get_shape())
            if found != shape:
                raise ModelError(
                    f"{self.directory}: {name} has shape {list(found)}; config.json asks for "
                    f"{list(shape)}"
                )


def _unused(name: str) -> bool:
    """Tensors that older writers left in: a tied head's copy, rotary frequencies."""
    return name == "lm_head.weight" or name.endswith(".rotary_emb.inv_freq")


def _named(names: Iterable[str]) -> str:
    ordered = sorted(names)
    shown = ", ".join(ordered[:NAMED_IN_ERRORS])
    more = len(ordered) - NAMED_IN_ERRORS
    plural = "tensor" if len(ordered) == 1 else "tensors"
    return f"{plural} {shown}" + (f" and {more} more" if more > 0 else "")


def _safetensors_files(directory: Path) -> list[Path]:
    index = directory / INDEX_FILE
    if (directory / SINGLE_FILE).is_file():
        return [directory / SINGLE_FILE]
    if not index.is_file():
        raise ModelError(f"{directory} has neither {SINGLE_FILE} nor {INDEX_FILE}")
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"{index} is not a safetensors index: {error!r}") from error
    for name in names:
        # A shard's name is data from the checkpoint: it may not point out of the directory.
        if name != Path(name).name or not (directory / name).is_file():
            raise ModelError(f"{index} names shard {name!r}, which is not a file beside it")
    return [directory / name for name in names]
