"""What int8 host KV costs in exactness: greedy agreement on a real model, and the error of
attention over KV of several distributions.

Agreement: the same BE requests, offloaded, once with KV in the model's dtype and once with int8;
equal tokens before the first difference, over all tokens. Results: bench/out/int8_kv.json and a
table.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer

import report
from omniserve_agent.engine.build import build_engine
from omniserve_agent.engine.messages import EngineConfig, SamplingParams, ServiceClass, Submit
from omniserve_native import Arena, ArenaConfig, AttendCall, DType, isa_name

PROMPTS = (
    "What is the capital of France, and what is it known for?",
    "Explain in a few sentences how a bicycle stays upright.",
    "Write a short story about a lighthouse keeper.",
    "List five uses of copper.",
    "How does bread dough rise? Describe the steps.",
    "Translate to French: The weather is nice today.",
    "What are prime numbers, and why do they matter in cryptography?",
    "Give advice to somebody who learns to play the piano.",
)
TOKENS, SIZE, CONTEXT, HEADS = 96, 64, 2000, 4
LONGEST_TOKENS = 1024
Floats = npt.NDArray[np.float64]


def outputs(options: argparse.Namespace, dtype: str, kv: str) -> list[list[int]]:
    """Greedy tokens of every prompt, all offloaded."""
    config = EngineConfig(
        model_dir=str(options.model_dir),
        dtype=dtype,
        kv_cache_dtype=kv,
        max_model_len=LONGEST_TOKENS,
        host_kv_bytes=256 << 20,
        device_kv_bytes=64 << 20,
        be_device_residency=False,
    )
    engine, _ = build_engine(config, lambda *_: None)
    tokenizer = AutoTokenizer.from_pretrained(options.model_dir)
    tokens: dict[str, list[int]] = {}
    for i, text in enumerate(PROMPTS):
        chat = [{"role": "user", "content": text}]
        prompt = tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, tokenize=True, return_dict=False
        )
        request = Submit(
            request_id=str(i),
            service="bench/be",
            service_class=ServiceClass.BE,
            prompt=cast(list[int], prompt),
            max_tokens=TOKENS,
            sampling=SamplingParams(temperature=0.0),
            ignore_eos=True,
        )
        if engine.submit(request) is not None:
            raise RuntimeError(f"request {i} was refused")
    while not engine.idle:
        for output in engine.step():
            tokens.setdefault(output.request_id, []).extend(output.token_ids)
    engine.close()
    return [tokens[str(i)] for i in range(len(PROMPTS))]


def agreement(left: list[list[int]], right: list[list[int]]) -> dict[str, float]:
    """Of tokens before the first difference, of whole outputs, and of first tokens."""
    same = [
        next((i for i, pair in enumerate(zip(a, b, strict=True)) if pair[0] != pair[1]), len(a))
        for a, b in zip(left, right, strict=True)
    ]
    return {
        "tokens_before_difference": sum(same) / sum(len(one) for one in left),
        "whole_outputs": sum(n == TOKENS for n in same) / len(same),
        "first_tokens": sum(n > 0 for n in same) / len(same),
    }


def uniform(random: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """In -1 to 1."""
    return random.uniform(-1, 1, shape)


def normal(random: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Standard."""
    return random.standard_normal(shape)


def outlier_channels(random: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Two of 64 dims twenty times as large, as keys of some models have them."""
    values = random.standard_normal(shape)
    values[..., [3, 40]] *= 20
    return values


def heavy_tails(random: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Student's t with three degrees of freedom."""
    return random.standard_t(3, shape)


DISTRIBUTIONS: tuple[Callable[[np.random.Generator, tuple[int, ...]], Floats], ...] = (
    uniform,
    normal,
    outlier_channels,
    heavy_tails,
)


def attention_error(
    draw: Callable[[np.random.Generator, tuple[int, ...]], Floats], dtype: DType, seed: int
) -> dict[str, float]:
    """max |o - float64| / max |V|, and the same root mean square over that of o."""
    random = np.random.default_rng(seed)
    k, v = (draw(random, (CONTEXT, SIZE)).astype(np.float32) for _ in "kv")
    q = draw(random, (1, HEADS * SIZE)).astype(np.float32)
    blocks = CONTEXT // 16
    with Arena(ArenaConfig(1, 1, SIZE, blocks, 1, blocks, dtype)) as arena:
        sequence = arena.open_sequence()
        arena.set_blocks(sequence, 0, range(blocks))
        arena.append(sequence, 0, 0, CONTEXT, k.ctypes.data, v.ctypes.data, dtype=DType.F32)
        o = np.zeros_like(q)
        scale = 1 / (SIZE**0.5 * max(1.0, float(np.std(k)) * float(np.std(q))))
        call = AttendCall(arena, HEADS, DType.F32, scale, 1)
        call.set_segments(np.array([sequence]), np.array([1]), np.array([CONTEXT - 1]))
        call.set_strides(HEADS * SIZE, SIZE, SIZE, HEADS * SIZE)
        call.run(0, q.ctypes.data, 0, 0, o.ctypes.data)
    scores = scale * q.reshape(HEADS, SIZE).astype(np.float64) @ k.T.astype(np.float64)
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    right = weights / weights.sum(axis=1, keepdims=True) @ v.astype(np.float64)
    off = o.reshape(HEADS, SIZE) - right
    return {
        "max_error": float(np.abs(off).max() / np.abs(v).max()),
        "relative_rms": float(np.sqrt((off**2).mean() / (right**2).mean())),
    }


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model-dir", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    console, table = Console(), Table("distribution", "KV", "max error", "relative rms")
    errors: list[dict[str, Any]] = []
    for draw in DISTRIBUTIONS:
        for dtype in (DType.BF16, DType.I8):
            found = attention_error(draw, dtype, options.seed)
            name = draw.__name__, dtype.name.lower()
            errors.append({"distribution": name[0], "kv": name[1], **found})
            table.add_row(*name, *(f"{value:.1e}" for value in found.values()))
    console.print(table)
    plain = {dtype: outputs(options, dtype, "auto") for dtype in ("float32", "bfloat16")}
    agreements = {
        dtype: agreement(tokens, outputs(options, dtype, "int8")) for dtype, tokens in plain.items()
    }
    agreements["bfloat16 against float32"] = agreement(*plain.values())  # what rounding alone does
    console.print(agreements)
    figures = {"isa": isa_name(), "errors": errors, "agreement": agreements}
    console.print(f"written: {report.write('int8_kv', figures, seed=options.seed)}")


if __name__ == "__main__":
    main()
