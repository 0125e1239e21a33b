"""Tiny random models of every family, and plain attention around our dense modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from omniserve_agent.engine.model.model import Model

VOCAB_SIZE = 256
MAX_POSITION = 512
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 128,
}
# name: (model_type, query heads, kv heads, head size, hidden size, options)
SHAPES: dict[str, tuple[str, int, int, int, int, dict[str, Any]]] = {
    "llama-group3-head64-tied": ("llama", 6, 2, 64, 96, {"tie_word_embeddings": True}),
    "llama-group1-head80-llama3": ("llama", 2, 2, 80, 64, {"rope_parameters": LLAMA3_ROPE}),
    "llama-group5-head64-biases-yarn": (
        "llama",
        5,
        1,
        64,
        80,
        {"attention_bias": True, "mlp_bias": True, "rope_parameters": YARN_ROPE},
    ),
    "mistral-group8-head128": ("mistral", 8, 1, 128, 64, {"sliding_window": None}),
    "qwen2-group7-head64-tied": ("qwen2", 7, 1, 64, 448, {"tie_word_embeddings": True}),
    "qwen3-group5-head96": ("qwen3", 10, 2, 96, 80, {"tie_word_embeddings": False}),
}
TINY_MODELS = tuple(SHAPES)


def write_tiny_model(name: str, directory: Path) -> None:
    """A float32 checkpoint of this shape; the same bytes for the same name."""
    family, q_heads, kv_heads, head_size, hidden_size, options = SHAPES[name]
    head = {} if family == "qwen2" else {"head_dim": head_size}  # Qwen2 derives it
    config = AutoConfig.for_model(
        family,
        vocab_size=VOCAB_SIZE,
        hidden_size=hidden_size,
        intermediate_size=112,
        num_hidden_layers=3,
        num_attention_heads=q_heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=MAX_POSITION,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
        dtype="float32",
        **{"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, **head, **options},
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    _randomise(model, seed=TINY_MODELS.index(name))
    model.save_pretrained(directory)


@torch.no_grad()
def _randomise(model: PreTrainedModel, seed: int) -> None:
    """Weights large enough that attention decides tokens; norms and biases that show if lost."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in name:
            parameter.copy_(1.0 + 0.2 * noise)
        elif name.endswith("bias"):
            parameter.copy_(0.3 * noise)
        elif "embed" in name:
            parameter.copy_(noise * parameter.shape[-1] ** -0.5)
        else:
            parameter.copy_(1.5 * noise * parameter.shape[-1] ** -0.5)


@torch.inference_mode()
def forward(model: Model, token_ids: list[int]) -> torch.Tensor:
    """Float32 logits [N, V] of one request from its first token, with plain causal attention."""
    config = model.config
    x = model.embed(torch.tensor(token_ids, device=model.device))
    rope = model.rope(torch.arange(len(token_ids), device=model.device))
    for layer in model.layers:
        q, k, v = (
            part.reshape(len(token_ids), -1, config.head_size).transpose(0, 1)
            for part in layer.pre_attention(x, rope)
        )
        k, v = (part.repeat_interleave(config.group_size, dim=0) for part in (k, v))
        o = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=config.scale)
        layer.post_attention(o.transpose(0, 1).reshape(len(token_ids), -1), x)
    return model.logits(x)
