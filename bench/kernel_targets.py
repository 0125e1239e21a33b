"""What the kernel issue asks for, from the rows of kernel.json: each figure beside its target."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from typing import Any

Row = dict[str, Any]
LONG = 2048  # tokens of context from which on the roof's targets hold
SHAPE = ("group", "head_size", "kv_heads", "context", "rows", "threads", "isa", "mixed")


def of(rows: list[Row]) -> dict[str, Any]:
    """Least and median of every target's figure; keys name the target."""
    best = [row for row in rows if row["isa"] == rows[0]["isa"]]
    every = max(row["threads"] for row in rows)
    decode = [r for r in best if r["dtype"] == "bf16" and r["q_len"] == 1 and not r["mixed"]]
    long = [row for row in decode if row["context"] >= LONG]
    named: dict[str, tuple[float, Iterable[float]]] = {}
    for name, target, chosen in [
        ("all cores, groups 1-8, head sizes 64 and 128", 0.9, usual(long, every)),
        ("all cores, group 16 or head size 256", 0.8, unusual(long, every)),
        ("one core, groups 1-4", 0.75, [r for r in usual(long, 1) if r["group"] <= 4]),
        ("one core, groups 5-8", 0.6, [r for r in usual(long, 1) if r["group"] >= 5]),
        ("all cores, avx2", 0.5, [r for r in rows if is_avx2(r, every)]),
    ]:
        named[f"of the roof: {name}"] = target, [row["roof_fraction"] for row in chosen]
    named["over vLLM"] = 1.5, present(decode, "ratio_vllm")
    grouped = [row for row in decode if row["group"] >= 4]
    named["over NEO-like, groups from 4 on"] = 3.0, present(grouped, "ratio_neo_like")
    named["int8 over bf16 tokens/s"] = 1.7, pairs(best, "dtype", "i8", "bf16", tokens)
    costs = pairs(best, "q_len", 1, 4, roof_fraction)
    named["time of 4 tokens a hop over 1 (at most)"] = 1.3, costs
    return {name: figures(*target) for name, target in named.items()}


def usual(rows: list[Row], threads: int) -> list[Row]:
    """Groups 1 to 8 and head sizes 64 and 128."""
    return [
        row
        for row in rows
        if row["threads"] == threads and row["group"] <= 8 and row["head_size"] in (64, 128)
    ]


def unusual(rows: list[Row], threads: int) -> list[Row]:
    """Group 16 and head size 256."""
    return [
        row
        for row in rows
        if row["threads"] == threads and (row["group"] == 16 or row["head_size"] == 256)
    ]


def is_avx2(row: Row, threads: int) -> bool:
    """bf16 decode of the AVX2 path."""
    kind = row["isa"], row["dtype"], row["q_len"], row["threads"]
    return kind == ("avx2", "bf16", 1, threads)


def present(rows: list[Row], name: str) -> list[float]:
    """A ratio, where it was measured."""
    return [row[name] for row in rows if row[name] is not None]


def tokens(row: Row) -> float:
    """Tokens per second, in units of the roof of the same turns."""
    return float(row["mtokens_per_s"] * row["roof_fraction"] / row["gbps"])


def roof_fraction(row: Row) -> float:
    """Speed relative to the roof of the same turns."""
    return float(row["roof_fraction"])


def pairs(
    rows: list[Row], name: str, of: int | str, over: int | str, figure: Callable[[Row], float]
) -> list[float]:
    """Ratios of rows that differ in `name` only; long contexts."""
    fixed = [key for key in (*SHAPE, "dtype", "q_len") if key not in (name, "rows")]
    found: dict[tuple[Any, ...], dict[Any, Row]] = {}
    for row in rows:
        if row["context"] >= LONG:
            found.setdefault(tuple(row[key] for key in fixed), {})[row[name]] = row
    both = [pair for pair in found.values() if of in pair and over in pair]
    return [figure(pair[of]) / figure(pair[over]) for pair in both]


def figures(target: float, values: Iterable[float]) -> dict[str, Any]:
    """Target, median, least, largest and how many."""
    ordered = sorted(values)
    if not ordered:
        return {"target": target, "shapes": 0}
    return {
        "target": target,
        "median": round(statistics.median(ordered), 3),
        "least": round(ordered[0], 3),
        "largest": round(ordered[-1], 3),
        "shapes": len(ordered),
    }
