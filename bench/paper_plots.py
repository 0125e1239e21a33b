"""Plots of the paper's evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import nan
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from paper_cases import RATES, SCARCE, STEADY
from paper_rows import Row, holds

Figure = tuple[str, float, str]  # key of a row, times what, label
ATTAINED: Figure = ("attained_offered", 100, "LS attained, % of offered")
BE_RATE: Figure = ("be_tokens_per_s", 1, "BE output tokens/s")
ORDER = ("poisson", "bursty", "off", "reject", "queue")


@dataclass(frozen=True)
class Picture:
    """Of a part: what runs along x, which of its rows, and which of other parts' at the heaviest
    load belong to it as well."""

    key: str
    label: str
    of: Row = field(default_factory=dict)
    beside: Row | None = None


HOSTS, NETWORK = "CPU-only hosts", "network of four CPU-only hosts, Gb/s"
PICTURES = {
    "load": Picture("rate", "LS requests per second"),
    "slo": Picture("tpot_slo_ms", "TPOT SLO, ms", beside={"part": "load"}),
    "hosts": Picture("cpu_hosts", HOSTS, beside={"part": "load"}),
    "network": Picture("network_gbps", NETWORK, beside={"part": "hosts", "cpu_hosts": 4}),
    "bursty": Picture("arrivals", "LS arrivals", beside={"part": "load"}),
    "admission": Picture("admission", "admission"),
    "memory": Picture(
        "device_share", "share of the device's KV", {"cpu_hosts": 0}, beside={"part": "load"}
    ),
    "scarce hosts": Picture("cpu_hosts", HOSTS, beside={"part": "memory", "device_share": SCARCE}),
    "scarce network": Picture(
        "network_gbps", NETWORK, beside={"part": "memory", "device_share": SCARCE, "cpu_hosts": 4}
    ),
    STEADY: Picture("cpu_hosts", HOSTS, {"network_gbps": 100.0}),
}


def draw(rows: Sequence[Row], folder: Path) -> list[Path]:
    """One picture per part: attainment above, BE tokens per second below."""
    paths = []
    for part, picture in PICTURES.items():
        chosen = _rows_of(part, picture, rows)
        if chosen:
            path = folder / f"paper_{part.replace(' ', '_')}.png"
            _draw(f"simulated, {part}", picture, chosen, path)
            paths.append(path)
    return paths


def _rows_of(part: str, picture: Picture, rows: Sequence[Row]) -> list[Row]:
    own = [row for row in rows if holds(row, picture.of | {"part": part})]
    columns = {_column(row) for row in own}
    beside = [
        row
        for row in rows
        if picture.beside is not None
        and holds(row, picture.beside)
        and row["rate"] == RATES[row["model"]][-1]
        and _column(row) in columns
    ]
    return own + beside


def _column(row: Row) -> tuple[str, str]:
    return row["model"], row["be_workload"]


def _draw(title: str, picture: Picture, rows: list[Row], path: Path) -> None:
    columns = sorted({_column(row) for row in rows})
    figure, axes = plt.subplots(2, len(columns), figsize=(4 * len(columns), 6), squeeze=False)
    for number, column in enumerate(columns):
        mine = [row for row in rows if _column(row) == column]
        for axis, (key, times, _) in zip(axes[:, number], (ATTAINED, BE_RATE), strict=True):
            _lines(axis, mine, picture.key, key, times)
        axes[0][number].set(title=", ".join(column), ylim=(-3, 103))
        axes[1][number].set(xlabel=picture.label, ylim=(0, None))
    for axis, (_, _, label) in zip(axes[:, 0], (ATTAINED, BE_RATE), strict=True):
        axis.set_ylabel(label)
    axes[0][-1].legend(fontsize=7)
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    plt.close(figure)


def _lines(axis: Axes, rows: list[Row], x: str, y: str, times: float) -> None:
    """One per policy; points alone where x is a word."""
    words = isinstance(rows[0][x], str)
    for policy in dict.fromkeys(row["policy"] for row in rows):
        mine: list[Row] = [row for row in rows if row["policy"] == policy]
        line = sorted(mine, key=lambda row: ORDER.index(row[x]) if words else row[x])
        values = [nan if row[y] is None else times * row[y] for row in line]
        axis.plot([row[x] for row in line], values, "o" if words else "o-", label=policy)
