"""One .gguf file into a directory of bfloat16 safetensors, configuration and tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

from omniserve_agent.engine.model.errors import PrepareError
from omniserve_agent.engine.model.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def convert_gguf(gguf: Path, directory: Path, progress: Progress) -> None:
    """Write `gguf` into the existing empty `directory`; raises PrepareError if it cannot be read.

    bfloat16 is asked for at load time: asking for float32 would keep the packed weights.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True}
    try:
        progress("reading weights", 0.05)
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.bfloat16, **place)
        progress("reading tokenizer", 0.6)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **place)
    except Exception as error:  # transformers and gguf raise many kinds for a bad file
        raise PrepareError(f"{gguf} cannot be converted: {error}") from error
    progress("writing", 0.8)
    _save_weights(model, directory)
    model.generation_config.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def _save_weights(model: PreTrainedModel, directory: Path) -> None:
    """Plain tensors without the mark of the packed origin, the tied head stored once."""
    tensors = {name: value.to(torch.bfloat16) for name, value in model.state_dict().items()}
    embedding, head = tensors["model.embed_tokens.weight"], tensors.get("lm_head.weight")
    config = model.config
    if head is None or torch.equal(embedding, head):
        tensors.pop("lm_head.weight", None)
        config.tie_word_embeddings = True
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.architectures = [type(model).__name__]
    config.save_pretrained(directory)
    contiguous = {name: value.contiguous() for name, value in tensors.items()}
    path = directory / "model.safetensors"
    save_file(contiguous, path, metadata={"format": "pt"})
    path.chmod(0o644)  # safetensors writes for the owner only
