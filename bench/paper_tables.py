"""Tables and headline ratios of the paper's evaluation, beside the paper's own figures."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from functools import cache
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from omniserve_agent.simulation.workload import BE_WORKLOADS

Row = dict[str, Any]
SHOWN = (
    ("offered", "offered"),
    ("attained_offered", "attained"),
    ("refused_share", "refused"),
    ("refused_would_attain", "of them would attain"),
    ("admitted_missed", "admitted, missed"),
    ("ttft_ms_p99", "TTFT p99"),
    ("tpot_ms_p50", "TPOT p50"),
    ("tpot_ms_p99", "TPOT p99"),
    ("be_tokens_per_s", "BE tok/s"),
    ("headroom", "headroom"),
    ("ceiling", "ceiling"),
)
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
RIVALS = ("static_headroom", "gpu_only_priority", "synchronous_offload")
DRAWN = 100_000  # lengths for a mean
MORE_POINTS, MORE_BE = 0.2, 0.01  # that a rival must have more, to count as better
PAPER = {
    "attainment_ratio": "1.48",
    "attainment_ratio_bursty": "1.23",
    "be_ratio_four_hosts": "9.85",
    "be_ratio_local": "3.47",
    "be_ratio_10gbps": "9.1",
    "be_ratio_light": "1.2",
    "admission_attainment_gain_points": "43.3",
}


def pairs(rows: Iterable[Row], against: str = "static_headroom") -> list[tuple[Row, Row]]:
    """omniserve's rows, each with the rival's of the same setting; where no LS came, none."""
    rows = [r for r in rows if r["attained_offered"] is not None]
    rivals = {tuple(r[k] for k in KEYS): r for r in rows if r["policy"] == against}
    own = [r for r in rows if r["policy"] == "omniserve"]
    return [(r, rivals[key]) for r in own if (key := tuple(r[k] for k in KEYS)) in rivals]


def best(rows: Iterable[Row], figure: str, **wanted: float | str) -> float | None:
    """The largest ratio of `figure` over settings in which `wanted` holds; None: there is none.

    Where the rival puts out less than a BE token a second, or attains nothing, no ratio is taken.
    """
    least = 1.0 if figure == "be_tokens_per_s" else 0.01
    ratios = [
        own[figure] / rival[figure]
        for own, rival in pairs(rows)
        if all(own[k] == v for k, v in wanted.items()) and rival[figure] >= least
    ]
    return max(ratios, default=None)


def headline(rows: list[Row]) -> dict[str, float | None]:
    """design.md, section 10: each is the largest ratio over the settings it is about."""
    full = [r for r in rows if r["device_share"] == 1.0 and r["part"] != "admission"]
    gains = []
    for model in {r["model"] for r in rows}:
        share = {
            r["admission"]: r["attained_finished"]
            for r in rows
            if r["part"] == "admission" and r["policy"] == "omniserve" and r["model"] == model
        }
        if share:
            gains.append(100 * (share["reject"] - share["off"]))
    light = [r for r in full if r["part"] == "load" and r["rate"] == 1]
    return {
        "attainment_ratio": best(full, "attained_offered"),
        "attainment_ratio_bursty": best(full, "attained_offered", arrivals="bursty"),
        "be_ratio_four_hosts": best(full, "be_tokens_per_s", cpu_hosts=4, network_gbps=100.0),
        "be_ratio_local": best(full, "be_tokens_per_s", cpu_hosts=0),
        "be_ratio_10gbps": best(full, "be_tokens_per_s", cpu_hosts=4, network_gbps=10.0),
        "be_ratio_light": best(light, "be_tokens_per_s"),
        "admission_attainment_gain_points": max(gains, default=None),
        "be_ratio_steady_8_percent_of_device_kv": best(
            [r for r in rows if r["part"] == "steady"], "be_tokens_per_s"
        ),
    } | {
        f"be_ratio_{name}_{100 * share:g}_percent_of_device_kv": best(
            [r for r in rows if r["part"] == "memory"],
            "be_tokens_per_s",
            cpu_hosts=hosts,
            device_share=share,
        )
        for share in (0.125, 0.08)
        for name, hosts in (("four_hosts", 4), ("local", 0))
    }


def against(rows: list[Row]) -> list[Row]:
    """omniserve beside each rival over every setting both ran, parts apart: BE's ratio (least,
    median, largest), and points of attainment it has more (least, median, largest)."""
    found: list[Row] = []
    for part in dict.fromkeys(r["part"] for r in rows):
        for rival in RIVALS:
            both = pairs([r for r in rows if r["part"] == part], rival)
            ratios = [
                own["be_tokens_per_s"] / other["be_tokens_per_s"]
                for own, other in both
                if other["be_tokens_per_s"] >= 1.0
            ]
            points = [100 * (a["attained_offered"] - b["attained_offered"]) for a, b in both]
            if ratios:
                found.append(
                    {
                        "part": part,
                        "rival": rival,
                        "settings": len(both),
                        "be_ratio": _spread(ratios),
                        "attainment_points": _spread(points),
                    }
                )
    return found


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
    both = {rival: pairs(own, rival) for rival in RIVALS}
    lost = {rival: [a for a, b in two if is_dominated(a, b)] for rival, two in both.items()}

    def settings(rows_of: Iterable[list[Row]]) -> int:
        return len({tuple(row[k] for k in KEYS) for some in rows_of for row in some})

    return {
        "part": part,
        "settings": settings([a for a, _ in two] for two in both.values()),
        "by_any": settings(lost.values()),
        "pairings": sum(len(two) for two in both.values()),
        "pairings_dominated": sum(len(some) for some in lost.values()),
        "by": {rival: [len(lost[rival]), len(both[rival])] for rival in RIVALS if both[rival]},
    }


def show_dominated(console: Console, found: list[Row], tokens: str = "BE tokens") -> None:
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


def _spread(values: list[float]) -> list[float]:
    return [round(v, 3) for v in (min(values), statistics.median(values), max(values))]


def show_against(console: Console, found: list[Row]) -> None:
    """`against` on the terminal."""
    table = Table(title="omniserve beside each rival, over all settings: median (least to largest)")
    for name in ("part", "rival", "settings", "BE ratio", "attainment, points more"):
        table.add_column(name, justify="left" if name in ("part", "rival") else "right")
    for row in found:
        spreads = [
            f"{middle:.2f} ({least:.2f} to {most:.2f})"
            for least, middle, most in (row["be_ratio"], row["attainment_points"])
        ]
        table.add_row(row["part"], row["rival"], str(row["settings"]), *spreads)
    console.print(table)


def show(console: Console, rows: list[Row], figures: dict[str, float | None]) -> None:
    """Everything on the terminal."""
    for part in dict.fromkeys(r["part"] for r in rows):
        console.print(_table(part, [r for r in rows if r["part"] == part]))
    table = Table(title="headline: omniserve / static_headroom, the best setting of each kind")
    for name in ("figure", "here", "paper"):
        table.add_column(name, justify="left" if name == "figure" else "right")
    for name, value in figures.items():
        table.add_row(name, "-" if value is None else f"{value:.2f}", PAPER.get(name, "-"))
    console.print(table)


def _table(part: str, rows: list[Row]) -> Table:
    varied = [key for key in KEYS if len({row[key] for row in rows}) > 1]
    table = Table(title=part)
    for key in varied:
        table.add_column(key.replace("_", " "))
    table.add_column("policy")
    for _, title in SHOWN:
        table.add_column(title, justify="right")
    for row in rows:
        table.add_row(
            *(str(row[key]) for key in varied),
            row["policy"],
            *(_text(key, row[key]) for key, _ in SHOWN),
        )
    return table


def _text(key: str, value: str | float | None) -> str:
    if value is None or isinstance(value, str):
        return value or "-"
    if key in ("attained_offered", "refused_share", "refused_would_attain"):
        return f"{value:.1%}"
    return f"{value:.0f}" if value >= 100 or isinstance(value, int) else f"{value:.1f}"
