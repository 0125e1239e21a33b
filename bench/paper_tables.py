"""Tables and headline ratios of the paper's evaluation, beside the paper's own figures."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table

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
PAPER = {
    "attainment_ratio": "1.48",
    "be_ratio_four_hosts": "9.85",
    "be_ratio_local": "3.47",
    "be_ratio_10gbps": "9.1",
    "be_ratio_light": "1.2",
    "admission_attainment_gain_points": "43.3",
}


def pairs(rows: Iterable[Row], against: str = "static_headroom") -> list[tuple[Row, Row]]:
    """omniserve's rows, each with the rival's of the same setting."""
    rows = list(rows)
    rivals = {tuple(r[k] for k in KEYS): r for r in rows if r["policy"] == against}
    own = [r for r in rows if r["policy"] == "omniserve"]
    return [(r, rivals[key]) for r in own if (key := tuple(r[k] for k in KEYS)) in rivals]


def best(rows: Iterable[Row], figure: str, **wanted: float) -> float | None:
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
        "be_ratio_four_hosts": best(full, "be_tokens_per_s", cpu_hosts=4, network_gbps=100.0),
        "be_ratio_local": best(full, "be_tokens_per_s", cpu_hosts=0),
        "be_ratio_10gbps": best(full, "be_tokens_per_s", cpu_hosts=4, network_gbps=10.0),
        "be_ratio_light": best(light, "be_tokens_per_s"),
        "admission_attainment_gain_points": max(gains, default=None),
    } | {
        f"be_ratio_{name}_{100 * share:g}_percent_of_device_kv": best(
            rows, "be_tokens_per_s", cpu_hosts=hosts, device_share=share
        )
        for share in (0.125, 0.08)
        for name, hosts in (("four_hosts", 4), ("local", 0))
    }


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
