"""Rows of paper.json: which belong to one setting, and to one pair."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

Row = dict[str, Any]
KEYS = (
    "model",
    "be_workload",
    "rate",
    "cpu_hosts",
    "network_gbps",
    "tpot_slo_ms",
    "arrivals",
    "admission",
    "device_share",
    "ablation",
)
IDENTITY = ("part", "policy", *KEYS, "seed")


def setting(row: Row) -> tuple[Any, ...]:
    """What every policy has in common in it."""
    return tuple(row[key] for key in KEYS)


def holds(row: Row, wanted: Row) -> bool:
    """Whether the row has all of these; of a tuple, one."""
    return all(
        row[key] in value if isinstance(value, tuple) else row[key] == value
        for key, value in wanted.items()
    )


def pairs(rows: Iterable[Row], own: Row, other: Row) -> list[tuple[Row, Row]]:
    """Rows that have all of `own`, each with the one that has `other` and in all else is the same,
    its seed included; where no LS came, none."""
    rows = [row for row in rows if row["attained_offered"] is not None]
    same = [key for key in IDENTITY if key not in other]

    def place(row: Row) -> tuple[Any, ...]:
        return tuple(row[key] for key in same)

    others = {place(row): row for row in rows if holds(row, own | other)}
    mine = [row for row in rows if holds(row, own)]
    return [(row, others[place(row)]) for row in mine if place(row) in others]


def first_seeds(rows: Iterable[Row]) -> list[Row]:
    """Without further seeds, which only some settings have; each part has its own first."""
    rows = list(rows)
    first: dict[str, int] = {}
    for row in rows:
        first[row["part"]] = min(row["seed"], first.get(row["part"], row["seed"]))
    return [row for row in rows if row["seed"] == first[row["part"]]]
