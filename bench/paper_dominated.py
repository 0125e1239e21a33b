"""In how many settings of the paper's evaluation another policy is as good in all and better in one
of LS attainment and BE tokens."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import numpy as np
from rich.console import Console
from rich.table import Table

from omniserve_agent.simulation.workload import BE_WORKLOADS
from paper_rows import Row, pairs, setting
from paper_tables import RIVALS

DRAWN = 100_000  # lengths for a mean
MORE_POINTS, MORE_BE = 0.2, 0.01  # that a rival must have more, to count as better


def sustained(row: Row) -> Row:
    """The same with no more BE tokens than the prompts computed meanwhile will put out.

    A window's tokens may also come from requests whose prompts were computed before it: a policy
    that decodes what it has and computes fewer prompts has more of them for as long as that lasts.
    Prompts computed twice flatter whoever does so.
    """
    from_prompts = row["be_prefill_tokens_per_s"] * _outputs_per_prompt(row["be_workload"])
    return row | {"be_tokens_per_s": min(row["be_tokens_per_s"], from_prompts)}


@cache
def _outputs_per_prompt(workload: str) -> float:
    """Output tokens over prompt tokens, as they are drawn."""
    random, of = np.random.default_rng(0), BE_WORKLOADS[workload]
    outputs, prompts = (lengths.draw(random, DRAWN).mean() for lengths in (of.output, of.prompt))
    return float(outputs / prompts)


def is_dominated(own: Row, rival: Row) -> bool:
    """Whether the rival has at least as much of both, and more of one than MORE_POINTS of
    attainment or MORE_BE of BE tokens."""
    points = 100 * (rival["attained_offered"] - own["attained_offered"])
    more = rival["be_tokens_per_s"] - own["be_tokens_per_s"]
    clearly = points > MORE_POINTS or more > MORE_BE * own["be_tokens_per_s"]
    return bool(points >= 0 and more >= 0 and clearly)


def dominated(rows: list[Row]) -> list[Row]:
    """In how many of a part's settings omniserve is dominated by each rival, and by any; the last
    row is over all parts. `pairings` counts a setting once for each rival that ran there."""
    found = [_dominated(part, rows) for part in dict.fromkeys(r["part"] for r in rows)]
    found = [one for one in found if one["pairings"]]
    sums = ("settings", "by_any", "pairings", "pairings_dominated")
    total: Row = {"part": "all parts"} | {key: sum(one[key] for one in found) for key in sums}
    return [*found, total]


def _dominated(part: str, rows: list[Row]) -> Row:
    own = [r for r in rows if r["part"] == part]
    both = {rival: pairs(own, {"policy": "omniserve"}, {"policy": rival}) for rival in RIVALS}
    lost = {rival: [a for a, b in two if is_dominated(a, b)] for rival, two in both.items()}

    def settings(rows_of: Iterable[list[Row]]) -> int:
        return len({setting(row) for some in rows_of for row in some})

    return {
        "part": part,
        "settings": settings([a for a, _ in two] for two in both.values()),
        "by_any": settings(lost.values()),
        "pairings": sum(len(two) for two in both.values()),
        "pairings_dominated": sum(len(some) for some in lost.values()),
        "by": {rival: [len(lost[rival]), len(both[rival])] for rival in RIVALS if both[rival]},
    }


def show(console: Console, found: list[Row], tokens: str = "BE tokens") -> None:
    """`dominated` on the terminal."""
    table = Table(
        title=f"omniserve dominated: a rival attains as much and has as many {tokens}, and more of "
        f"one (over {MORE_POINTS} points, over {MORE_BE:.0%})"
    )
    for name in ("part", "by any", *RIVALS, "pairings"):
        table.add_column(name, justify="left" if name == "part" else "right")
    for row in found:
        by = {rival: "{} of {}".format(*count) for rival, count in row.get("by", {}).items()}
        table.add_row(
            row["part"],
            f"{row['by_any']} of {row['settings']}",
            *(by.get(rival, "-") for rival in RIVALS),
            f"{row['pairings_dominated']} of {row['pairings']}",
        )
    console.print(table)
    total = found[-1]
    console.print(
        f"by {tokens} dominated by another policy in {total['by_any']} of {total['settings']} "
        f"settings, {total['pairings_dominated']} of {total['pairings']} pairings"
    )
