"""What a model is: shapes, positions and options, read from a Hugging Face model directory."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from omniserve_agent.engine.model.errors import ModelError

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SCALED_ROPE_KINDS = ("linear", "llama3", "yarn")


@dataclass(frozen=True)
class Rope:
    """Rotary embedding: `inv_freq` has head_size / 2 radians per position, exact float32 values."""

    inv_freq: tuple[float, ...]
    attention_factor: float = 1.0


@dataclass(frozen=True)
class ModelConfig:
    """Everything the layers need to know of a family; sizes in elements, positions in tokens.

    `max_position` is the longest request that is computed exactly: the model's context, or its
    sliding window where that is shorter, because attention here is always full. `sliding_window`
    says which of the two it was. `dtype` is the checkpoint's own, None where it does not say.
    """

    family: str
    layers: int
    hidden_size: int
    intermediate_size: int
    q_heads: int
    kv_heads: int
    head_size: int
    vocab_size: int
    max_position: int
    rms_eps: float
    rope: Rope
    tied_head: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    eos_token_ids: tuple[int, ...] = ()
    dtype: str | None = None
    sliding_window: int | None = None

    def __post_init__(self) -> None:
        if self.q_heads % self.kv_heads:
            raise ModelError(
                f"{self.q_heads} query heads cannot share {self.kv_heads} kv heads evenly; "
                "num_attention_heads must be a multiple of num_key_value_heads"
            )
        if len(self.rope.inv_freq) * 2 != self.head_size:
            raise ModelError(
                f"rotary embedding covers {len(self.rope.inv_freq) * 2} of {self.head_size} "
                "elements of a head; only full rotary embeddings are supported"
            )

    @property
    def group_size(self) -> int:
        """Query heads per kv head."""
        return self.q_heads // self.kv_heads

    @property
    def scale(self) -> float:
        """Factor of the attention scores."""
        return float(self.head_size**-0.5)

    @property
    def torch_dtype(self) -> torch.dtype | None:
        """The checkpoint's own dtype, None where the configuration does not say."""
        return None if self.dtype is None else parse_dtype(self.dtype)

    @classmethod
    def from_directory(cls, path: str | Path) -> ModelConfig:
        """Read `config.json` and, where there is one, `generation_config.json`.

        Raises ModelError for an unknown family, an unsupported option or an unreadable file.
        """
        directory = Path(path)
        raw = _read_json(directory / "config.json")
        _check_supported(raw, directory)
        try:
            loaded = AutoConfig.from_pretrained(
                directory, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # transformers raises many kinds for a bad value
            raise ModelError(f"{directory}/config.json cannot be used: {error}") from error
        return _convert(loaded, raw, directory)


def parse_dtype(name: str) -> torch.dtype:
    """The torch dtype of `float32`, `bfloat16` or `float16`."""
    if name not in DTYPES:
        raise ModelError(f"dtype {name!r} is not supported; use one of {', '.join(DTYPES)}")
    return DTYPES[name]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path} does not exist; a model directory needs it") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds {type(content).__name__}; it must hold an object")
    return content


def _check_supported(raw: dict[str, Any], directory: Path) -> None:
    family = raw.get("model_type")
    if family not in FAMILIES:
        raise ModelError(
            f"{directory}: model_type {family!r} is not supported; use one of {', '.join(FAMILIES)}"
        )
    activation = raw.get("hidden_act", "silu")
    if activation != "silu":
        raise ModelError(f"{directory}: hidden_act {activation!r} is not supported; only silu is")
    if raw.get("quantization_config"):
        kind = raw["quantization_config"].get("quant_method", "unnamed")
        raise ModelError(
            f"{directory}: quantised weights ({kind}) are not supported; "
            "use a bfloat16, float16 or float32 checkpoint"
        )


def _convert(loaded: PreTrainedConfig, raw: dict[str, Any], directory: Path) -> ModelConfig:
    values = loaded.to_dict()
    family, q_heads = str(loaded.model_type), int(values["num_attention_heads"])
    head_size = int(values.get("head_dim") or values["hidden_size"] // q_heads)
    attention_bias = family in ("llama", "qwen3") and bool(values["attention_bias"])
    context_tokens = int(values["max_position_embeddings"])
    window = _active_window(values)
    return ModelConfig(
        family=family,
        layers=int(values["num_hidden_layers"]),
        hidden_size=int(values["hidden_size"]),
        intermediate_size=int(values["intermediate_size"]),
        q_heads=q_heads,
        kv_heads=int(values["num_key_value_heads"]),
        head_size=head_size,
        vocab_size=int(values["vocab_size"]),
        max_position=min(context_tokens, window or context_tokens),
        rms_eps=float(values["rms_norm_eps"]),
        rope=_rope(loaded, head_size),
        tied_head=bool(values["tie_word_embeddings"]),
        qkv_bias=attention_bias or family == "qwen2",
        o_bias=attention_bias,
        mlp_bias=family == "llama" and bool(values["mlp_bias"]),
        qk_norm=family == "qwen3",
        eos_token_ids=_eos_token_ids(values, directory),
        dtype=raw.get("dtype") or raw.get("torch_dtype"),
        sliding_window=window if window is not None and window < context_tokens else None,
    )


def _active_window(values: dict[str, Any]) -> int | None:
    """The sliding window in tokens if any layer uses one."""
    window, kinds = values.get("sliding_window"), values.get("layer_types")
    if window is None or (kinds is not None and "sliding_attention" not in kinds):
        return None
    return int(window)


def _rope(loaded: PreTrainedConfig, head_size: int) -> Rope:
    parameters: dict[str, Any] = getattr(loaded, "rope_parameters", None) or {}
    kind = parameters.get("rope_type", "default")
    if "rope_theta" not in parameters:
        raise ModelError(f"rope_parameters {parameters!r} lack rope_theta; one set must fit all")
    if parameters.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise ModelError(
            f"partial_rotary_factor {parameters['partial_rotary_factor']} is not supported; "
            "only full rotary embeddings are"
        )
    if kind == "default":
        exponents = torch.arange(0, head_size, 2, dtype=torch.float32) / head_size
        inv_freq, factor = 1.0 / (parameters["rope_theta"] ** exponents), 1.0
    elif kind in SCALED_ROPE_KINDS:
        inv_freq, factor = ROPE_INIT_FUNCTIONS[kind](loaded, torch.device("cpu"))
    else:
        supported = ", ".join(("default", *SCALED_ROPE_KINDS))
        raise ModelError(f"rope_type {kind!r} is not supported; use one of {supported}")
    return Rope(tuple(inv_freq.tolist()), float(factor))


def _eos_token_ids(values: dict[str, Any], directory: Path) -> tuple[int, ...]:
    """Union of both files' ids: chat models often name the end of turn only in the second."""
    found = _as_ids(values.get("eos_token_id"))
    generation = directory / "generation_config.json"
    if generation.is_file():
        found |= _as_ids(_read_json(generation).get("eos_token_id"))
    return tuple(sorted(found))


def _as_ids(value: int | list[int] | None) -> set[int]:
    if value is None:
        return set()
    return {value} if isinstance(value, int) else set(value)
