"""What the kernel issue asks for, from kernel.json: each figure beside its target, and how many
shapes arithmetic keeps from it."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]
LONG = 2048  # tokens of context from which on the roof's targets hold
SHAPE = ("group", "head_size", "kv_heads", "context", "threads", "isa", "mixed", "dtype", "q_len")
NEAR = 0.9  # of the bound, which is enough where it leaves no room for more
# Of the roof: name, target, threads (None: all), least and most group, head sizes.
ROOF_TARGETS = (
    ("all cores, groups 1-8, head sizes 64 and 128", 0.9, None, 1, 8, (64, 128)),
    ("all cores, group 16, head sizes 64 and 128", 0.8, None, 16, 16, (64, 128)),
    ("all cores, groups 1-8, head size 256", 0.8, None, 1, 8, (256,)),
    ("all cores, group 16, head size 256", 0.8, None, 16, 16, (256,)),
    ("one core, groups 1-4", 0.75, 1, 1, 4, (64, 128)),
    ("one core, groups 5-8", 0.6, 1, 5, 8, (64, 128)),
)


@dataclass(frozen=True)
class Reached:
    """One shape's figure; `forbidden`: the target is above what arithmetic allows there."""

    value: float
    forbidden: bool = False


@dataclass(frozen=True)
class Target:
    """`by`: whether every shape or their median has to reach it. Shapes of which arithmetic forbids
    it do not count for that."""

    wanted: float
    reached: list[Reached]
    at_most: bool = False
    by: str = "every"

    def holds(self) -> bool | None:
        """None where no shape counts."""
        allowed = [one.value for one in self.reached if not one.forbidden]
        if not allowed:
            return None
        if self.by == "median":
            allowed = [statistics.median(allowed)]
        return max(allowed) <= self.wanted if self.at_most else min(allowed) >= self.wanted

    def json(self) -> dict[str, Any]:
        """As in the result file."""
        head = {"target": round(self.wanted, 6), "at_most": self.at_most, "by": self.by}
        values = sorted(one.value for one in self.reached)
        forbidden = sum(one.forbidden for one in self.reached)
        head |= {"shapes": len(values), "forbidden": forbidden, "holds": self.holds()}
        if not values:
            return head
        ends = {"least": values[0], "median": statistics.median(values), "largest": values[-1]}
        return head | {name: float(f"{value:.4g}") for name, value in ends.items()}


def of(figures: dict[str, Any]) -> dict[str, Any]:
    """By name, in the issue's order."""
    rows = figures["rows"]
    best = [row for row in rows if row["isa"] == rows[0]["isa"]]
    found = of_the_roof(rows, best) | of_peers(best) | of_pairs(best) | of_errors(rows)
    found |= of_joins(figures)
    return {name: target.json() for name, target in found.items()}


def of_the_roof(rows: list[Row], best: list[Row]) -> dict[str, Target]:
    """Shares of the read roof in bf16 decode of long rows."""
    every = max(row["threads"] for row in rows)
    found = {}
    for name, wanted, threads, least, most, sizes in ROOF_TARGETS:
        chosen = [
            row
            for row in long_decode(best, threads or every)
            if least <= row["group"] <= most and row["head_size"] in sizes
        ]
        found[f"of the roof: {name}"] = Target(wanted, [share(row, wanted) for row in chosen])
    avx2 = [row for row in long_decode(rows, every) if row["isa"] == "avx2"]
    found["of the roof: all cores, avx2"] = Target(0.5, [share(row, 0.5) for row in avx2])
    return found


def of_peers(best: list[Row]) -> dict[str, Target]:
    """Times the peers' speed; of shapes at all contexts."""
    rows = [row for row in best if is_decode(row)]
    grouped = [row for row in rows if row["group"] >= 4]
    return {
        "over vLLM, median": Target(1.5, over(rows, "ratio_vllm", 1.5), by="median"),
        "over vLLM": Target(1.0, over(rows, "ratio_vllm", 1.0)),
        "over NEO-like, groups from 4 on": Target(3.0, over(grouped, "ratio_neo_like", 3.0)),
    }


def of_pairs(best: list[Row]) -> dict[str, Target]:
    """Of two shapes that differ in one thing, where memory binds the more laborious one."""
    int8 = [
        Reached(tokens(ours) / tokens(other), not memory_binds(ours))
        for ours, other in pairs(best, "dtype", "i8", "bf16")
    ]
    four = [
        Reached(one["roof_fraction"] / more["roof_fraction"], not memory_binds(more))
        for more, one in pairs(best, "q_len", 4, 1)
    ]
    return {
        "int8 over bf16 tokens/s": Target(1.7, int8),
        "time of 4 tokens a hop over 1": Target(1.3, four, at_most=True),
    }


def of_errors(rows: list[Row]) -> dict[str, Target]:
    """Against float64, over the largest value, of every path."""
    limits = {"bf16": 2e-3, "f32": 1e-5}
    return {
        f"error, {dtype}": Target(
            limit, [Reached(r["max_error"]) for r in rows if r["dtype"] == dtype], at_most=True
        )
        for dtype, limit in limits.items()
    }


def of_joins(figures: dict[str, Any]) -> dict[str, Target]:
    """Beside the kernel: what joins add, and a hop's way there and back by a spinning worker, of
    which the pickup is a part."""
    joins, hop = figures["joins"], figures["hop_us"]["spinning"]
    added = [Reached(joins["added_us_per_layer"])]
    return {
        "joins, us a layer": Target(joins["allowed_us_per_layer"], added, at_most=True),
        "pickup (a hop there and back), us": Target(
            5.0, [Reached(hop["there_and_back"])], at_most=True
        ),
    }


def is_decode(row: Row) -> bool:
    """One token a row, bf16, rows alike."""
    return row["dtype"] == "bf16" and row["q_len"] == 1 and not row["mixed"]


def long_decode(rows: list[Row], threads: int) -> list[Row]:
    """What the roof's targets speak of."""
    return [r for r in rows if is_decode(r) and r["context"] >= LONG and r["threads"] == threads]


def share(row: Row, wanted: float) -> Reached:
    """Of the roof."""
    return Reached(row["roof_fraction"], row["bound_gbps"] < wanted * row["roof_gbps"])


def over(rows: Iterable[Row], ratio: str, wanted: float) -> list[Reached]:
    """A peer's ratio where it was measured; forbidden where the bound itself is not `wanted` times
    the peer's speed and the kernel is near enough to it."""
    return [
        Reached(row[ratio], impossible(row, ratio, wanted) and row["bound_fraction"] >= NEAR)
        for row in rows
        if row[ratio] is not None
    ]


def impossible(row: Row, ratio: str, wanted: float) -> bool:
    """Whether the peer runs too near to the bound to be beaten by so much."""
    return bool(row[ratio] / row["bound_fraction"] < wanted)


def memory_binds(row: Row) -> bool:
    """By the roofs of the row's own turns."""
    return bool(row["arithmetic_gbps"] >= row["roof_gbps"])


def tokens(row: Row) -> float:
    """Tokens per second, in units of the roof of the same turns."""
    return float(row["mtokens_per_s"] * row["roof_fraction"] / row["gbps"])


def pairs(rows: list[Row], name: str, of: int | str, over: int | str) -> list[tuple[Row, Row]]:
    """Rows that differ in `name` only; long contexts."""
    fixed = [key for key in SHAPE if key != name]
    found: dict[tuple[Any, ...], dict[Any, Row]] = {}
    for row in rows:
        if row["context"] >= LONG:
            found.setdefault(tuple(row[key] for key in fixed), {})[row[name]] = row
    return [(pair[of], pair[over]) for pair in found.values() if of in pair and over in pair]
