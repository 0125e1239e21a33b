"""What host attention is to reach, from kernel.json: each figure beside its target, and how many
shapes arithmetic keeps from it."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]
LONG = 2048  # tokens of context from which on the roof's targets hold
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

    @property
    def allowed(self) -> list[float]:
        """What counts."""
        return [one.value for one in self.reached if not one.forbidden]

    def misses(self, value: float) -> bool:
        """Whether one figure does."""
        return value > self.wanted if self.at_most else value < self.wanted

    def holds(self) -> bool | None:
        """None where no shape counts."""
        if not self.allowed:
            return None
        values = [statistics.median(self.allowed)] if self.by == "median" else self.allowed
        return not any(map(self.misses, values))

    def json(self) -> dict[str, Any]:
        """As in the result file."""
        head = {"target": round(self.wanted, 6), "at_most": self.at_most, "by": self.by}
        values = sorted(one.value for one in self.reached)
        forbidden = sum(one.forbidden for one in self.reached)
        head |= {"shapes": len(values), "forbidden": forbidden, "holds": self.holds()}
        head["missed"] = sum(map(self.misses, self.allowed))
        if not values:
            return head
        ends = {"least": values[0], "median": statistics.median(values), "largest": values[-1]}
        return head | {name: float(f"{value:.4g}") for name, value in ends.items()}


def of(figures: dict[str, Any]) -> dict[str, Any]:
    """By name: the roof, peers, pairs, errors, joins."""
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
    """Times the peers' speed; of shapes at all contexts, alike and not, and tokens a hop."""
    grouped = [row for row in best if row["group"] >= 4]
    return {
        "over vLLM, median": Target(1.5, over(best, "ratio_vllm", 1.5), by="median"),
        "over vLLM": Target(1.0, over(best, "ratio_vllm", 1.0)),
        "over NEO-like, groups from 4 on": Target(3.0, over(grouped, "ratio_neo_like", 3.0)),
    }


def of_pairs(best: list[Row]) -> dict[str, Target]:
    """Of shapes beside their twins, where memory binds them."""
    twins = [row for row in best if row["rows_over_twin"] and row["context"] >= LONG]
    int8 = [
        Reached(row["rows_over_twin"], not memory_binds(row))
        for row in twins
        if row["dtype"] == "i8"
    ]
    four = [
        Reached(1 / row["rows_over_twin"], not memory_binds(row))
        for row in twins
        if row["dtype"] != "i8" and row["q_len"] == 4
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
    """Beside the kernel: what joins add, and how long a row waits for a worker."""
    joins = figures["joins"]
    added = [Reached(joins["added_us_per_layer"])]
    taken = [Reached(hop["taken_us"]) for hop in figures["hops"] if is_pickup(hop)]
    return {
        "joins, us a layer": Target(joins["allowed_us_per_layer"], added, at_most=True),
        "pickup by a spinning worker, us": Target(5.0, taken, at_most=True),
    }


def is_pickup(hop: dict[str, Any]) -> bool:
    """Of a worker that spins."""
    return bool(hop["spinning"]) and "taken_us" in hop


def is_decode(row: Row) -> bool:
    """One token a row, bf16, rows alike."""
    return (row["dtype"], row["q_len"], row["lengths"]) == ("bf16", 1, "alike")


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
    """By the roofs of the row's own turns. Of arithmetic only the path's multiply-adds count, not
    what is widened or exponentiated beside them: it is said too often rather than too seldom."""
    return bool(row["arithmetic_gbps"] >= row["roof_gbps"])
