"""What writing KV into packed tiles and reading it back costs, beside memcpy of the same bytes.

Append (from rows of the arena's dtype and of others), import, import of tiles that a device has
packed, the same packed here by torch, and export of a prompt, layer after layer, so that neither
rows nor tiles are in a cache; one thread, its time on its core. GB/s count each stored byte of K
and V once, and memcpy's each copied byte once. Results: bench/out/append.json and a table.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.table import Table

import report
from omniserve_agent.engine.kv.tiles import pack_tiles
from omniserve_native import Arena, ArenaConfig, DType, isa_name

LAYERS, KV_HEADS, SIZE = 8, 8, 128
Bytes = npt.NDArray[np.uint8]
KINDS = (DType.BF16, DType.F16, DType.F32, DType.I8)
NUMBERS = {DType.BF16: 0x3F00, DType.F16: 0x3800}  # of 16 bits: from 0.5 on


@dataclass(frozen=True)
class Case:
    """One way in or out."""

    way: str  # "append", "import", "tiles", "torch" or "export"
    kv: DType
    rows: DType


CASES = (
    *(Case(way, kv, kv) for kv in KINDS for way in ("import", "tiles", "export")),
    *(Case("append", kv, kv) for kv in KINDS if kv is not DType.I8),
    Case("append", DType.BF16, DType.F32),
    Case("append", DType.I8, DType.BF16),
    Case("torch", DType.BF16, DType.BF16),
    Case("torch", DType.I8, DType.BF16),
)


def numbers(dtype: DType, count: int) -> Bytes:
    """`count` finite numbers as bytes."""
    steps = np.arange(count) * 37 % 64
    if dtype is DType.F32:
        return (0.5 + steps / 128).astype(np.float32).view(np.uint8)
    if dtype is DType.I8:
        return steps.astype(np.uint8)
    return (NUMBERS[dtype] + steps).astype(np.uint16).view(np.uint8)


class Prompt:
    """Rows of `tokens` tokens for every layer, an arena for them, and room to copy them to."""

    def __init__(self, case: Case, tokens: int) -> None:
        self.case, self.tokens = case, tokens
        blocks = tokens // 16
        self.arena = Arena(ArenaConfig(LAYERS, KV_HEADS, SIZE, blocks, 1, blocks, case.kv))
        self.arena.prefault()
        self.layout = self.arena.layout()
        self.sequence = self.arena.open_sequence()
        self.arena.set_blocks(
            self.sequence, 0, np.random.default_rng(0).permutation(blocks).tolist()
        )
        self.stored_bytes = 2 * LAYERS * tokens * KV_HEADS * case.kv.head_bytes(SIZE)
        row = KV_HEADS * (SIZE * 4 if case.rows is DType.F32 else case.rows.head_bytes(SIZE))
        self.rows = np.resize(numbers(case.rows, 1 << 16), (2 * LAYERS, tokens * row))
        self.copy = np.ones(self.stored_bytes, np.uint8)
        self.source = np.ones(self.stored_bytes, np.uint8)

    def memcpy(self) -> None:
        """The stored bytes, layer by layer, K and V."""
        for to, source in zip(
            np.split(self.copy, 2 * LAYERS), np.split(self.source, 2 * LAYERS), strict=True
        ):
            np.copyto(to, source)

    def run(self) -> None:
        """Every layer's K and V the case's way."""
        for layer in range(LAYERS):
            k, v = (self.rows[2 * layer + i].ctypes.data for i in range(2))
            where = (self.sequence, layer, 0, self.tokens)
            if self.case.way == "append":
                stride = KV_HEADS * SIZE
                self.arena.append(*where, k, v, stride=stride, dtype=self.case.rows)
            elif self.case.way == "tiles":
                self.arena.import_tiles(
                    *where, k
                )  # K's rows and V's side by side are as many bytes
            elif self.case.way == "torch":
                tiles = self.packed(layer)
                self.arena.import_tiles(*where, tiles.data_ptr())
            elif self.case.way == "import":
                self.arena.import_tokens(*where, k, v)
            else:
                self.arena.export_tokens(*where, k, v)

    def packed(self, layer: int) -> torch.Tensor:
        """One layer's bfloat16 rows as the arena's tiles."""
        shape = (2, self.tokens, KV_HEADS, SIZE)
        rows = torch.from_numpy(self.rows[2 * layer : 2 * layer + 2]).view(torch.bfloat16)
        k, v = rows.view(shape)
        return pack_tiles(k, v, self.layout)


def seconds(call: Callable[[], None]) -> float:
    """Of one call, on its core."""
    begin = time.thread_time()
    call()
    return time.thread_time() - begin


def measure(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """Medians of alternating rounds."""
    prompt = Prompt(case, options.tokens)
    for layer in range(LAYERS):
        prompt.arena.truncate(prompt.sequence, 0)
        prompt.arena.import_tokens(
            prompt.sequence, layer, 0, options.tokens, *(prompt.copy.ctypes.data,) * 2
        )
    rounds = [(seconds(prompt.run), seconds(prompt.memcpy)) for _ in range(options.rounds + 1)][1:]
    took, copied = (statistics.median(times) for times in zip(*rounds, strict=True))
    prompt.arena.close()
    return {
        "way": case.way,
        "kv": case.kv.name.lower(),
        "rows": case.rows.name.lower(),
        "gbps": prompt.stored_bytes / took / 1e9,
        "memcpy_gbps": prompt.stored_bytes / copied / 1e9,
        "us_per_token_and_layer": took / options.tokens / LAYERS * 1e6,
        "times_memcpy": took / copied,
    }


def show(results: list[dict[str, Any]]) -> None:
    """The table."""
    table = Table("way", "KV", "rows", "GB/s", "memcpy GB/s", "times memcpy", "µs/token, layer")
    for r in results:
        figures = ("gbps", "memcpy_gbps", "times_memcpy", "us_per_token_and_layer")
        table.add_row(r["way"], r["kv"], r["rows"], *(f"{r[figure]:.2f}" for figure in figures))
    Console().print(table)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=2048, help="of the prompt; whole blocks")
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


def main() -> None:
    """Measures, shows, writes."""
    options = parse()
    torch.set_num_threads(1)
    results = [measure(case, options) for case in CASES]
    show(results)
    shape = {"layers": LAYERS, "kv_heads": KV_HEADS, "head_size": SIZE, "tokens": options.tokens}
    contents = {"isa": isa_name(), "shape": shape, "rounds": options.rounds, "results": results}
    path = report.write("append", contents, seed=0)
    Console().print(f"written to {path}")


if __name__ == "__main__":
    main()
