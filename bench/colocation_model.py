"""A model directory of Llama-3-8B's shape with random weights, for `colocation.py --device cuda`.

Weights are drawn layer by layer (on the GPU where there is one) and written as sharded safetensors;
the tokenizer has one word per token id.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig

from omniserve_agent.engine.model.config import ModelConfig
from omniserve_agent.engine.model.random_weights import STANDARD_DEVIATION
from omniserve_agent.engine.model.weights import INDEX_FILE, expected_shapes

SHAPES = {
    "llama-3-8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
    },
    "tiny": {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 64,
        "vocab_size": 4096,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
    },
}


def write_model(name: str, directory: Path, seed: int) -> None:
    """Configuration, weights and tokenizer."""
    directory.mkdir(parents=True, exist_ok=True)
    shape = SHAPES[name]
    config = AutoConfig.for_model(
        "llama", dtype="bfloat16", bos_token_id=None, eos_token_id=None, **shape
    )
    config.save_pretrained(directory)
    generator = torch.Generator(_device()).manual_seed(seed)
    shards: dict[str, str] = {}
    for number, names in enumerate(_shards(ModelConfig.from_directory(directory))):
        file = f"model-{number:05}.safetensors"
        tensors = {name: _draw(name, size, generator) for name, size in names.items()}
        save_file(tensors, directory / file, metadata={"format": "pt"})
        shards.update(dict.fromkeys(names, file))
    index = {"metadata": {}, "weight_map": shards}
    (directory / INDEX_FILE).write_text(json.dumps(index))
    words = {f"t{index}": index for index in range(int(shape["vocab_size"]))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="t0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(directory / "tokenizer.json"))


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _shards(config: ModelConfig) -> Iterator[dict[str, tuple[int, ...]]]:
    """Names and shapes: what lies outside the layers, then a layer each."""
    shapes = expected_shapes(config)
    yield {name: size for name, size in shapes.items() if ".layers." not in name}
    for layer in range(config.layers):
        yield {name: size for name, size in shapes.items() if f".layers.{layer}." in name}


def _draw(name: str, size: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    values = torch.empty(size, dtype=torch.bfloat16, device=generator.device)
    if "norm" in name:
        return values.fill_(1.0).cpu()
    return values.normal_(0.0, STANDARD_DEVIATION, generator=generator).cpu()


def main() -> None:
    """Write one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--shape", choices=tuple(SHAPES), default="llama-3-8b")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write_model(options.shape, options.directory, options.seed)


if __name__ == "__main__":
    main()
