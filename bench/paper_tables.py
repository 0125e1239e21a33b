"""Tables of the paper's evaluation: every run, and omniserve beside each rival."""

from __future__ import annotations

import statistics

from rich.console import Console
from rich.table import Table

from paper_rows import KEYS, Row, pairs

SHOWN = (
    ("offered", "offered"),
    ("attained_offered", "attained"),
    ("refused_share", "refused"),
    ("refused_would_attain", "of them would attain (95 %)"),
    ("admitted_missed", "admitted, missed"),
    ("ls_tokens_per_s", "LS tok/s"),
    ("ttft_ms_p99", "TTFT p99"),
    ("tpot_ms_p50", "TPOT p50"),
    ("tpot_ms_p99", "TPOT p99"),
    ("be_tokens_per_s", "BE tok/s"),
    ("headroom", "headroom"),
    ("ceiling", "ceiling"),
)
RIVALS = ("static_headroom", "gpu_only_priority", "synchronous_offload")


def against(rows: list[Row]) -> list[Row]:
    """omniserve beside each rival over every setting both ran, parts apart: BE's ratio (least,
    median, largest), and points of attainment it has more (least, median, largest)."""
    parts = dict.fromkeys(r["part"] for r in rows)
    found = (_against(part, rival, rows) for part in parts for rival in RIVALS)
    return [one for one in found if one is not None]


def _against(part: str, rival: str, rows: list[Row]) -> Row | None:
    both = pairs(rows, {"policy": "omniserve", "part": part}, {"policy": rival})
    ratios = [
        own["be_tokens_per_s"] / other["be_tokens_per_s"]
        for own, other in both
        if other["be_tokens_per_s"] >= 1.0
    ]
    points = [100 * (own["attained_offered"] - other["attained_offered"]) for own, other in both]
    if not ratios:
        return None
    return {
        "part": part,
        "rival": rival,
        "settings": len(both),
        "be_ratio": _spread(ratios),
        "attainment_points": _spread(points),
    }


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


def show(console: Console, rows: list[Row]) -> None:
    """Every part on the terminal."""
    for part in dict.fromkeys(r["part"] for r in rows):
        console.print(_table(part, [r for r in rows if r["part"] == part]))


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
            *(_text(key, row) for key, _ in SHOWN),
        )
    return table


def _text(key: str, row: Row) -> str:
    value = row[key]
    if value is None or isinstance(value, str):
        return value or "-"
    if key == "refused_would_attain":
        low, high = row["refused_would_attain_interval"]
        return f"{value:.0%} of {row['refused_tried']} ({low:.0%} to {high:.0%})"
    if key in ("attained_offered", "refused_share"):
        return f"{value:.1%}"
    return f"{value:.0f}" if value >= 100 or isinstance(value, int) else f"{value:.1f}"
