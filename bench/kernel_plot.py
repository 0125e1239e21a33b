"""The roofline picture of kernel.json: `python bench/kernel_plot.py kernel.json` draws it again."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

Row = dict[str, Any]
CEILINGS: dict[str, Literal["-", "--"]] = {"bf16": "-", "i8": "--"}
MARKERS = {"bf16": "o", "f16": "s", "f32": "^", "i8": "D"}


def intensity(row: Row) -> float:
    """Multiply-adds per KV byte."""
    element = {"f32": 4, "i8": 1}.get(row["dtype"], 2)
    return float(row.get("macs_per_byte", row["group"] * row["q_len"] / element))


def memory_roof(figures: Row, threads: int) -> float:
    """GB/s; the shapes' own turns count, as other work on the machine changes it meanwhile."""
    found = [
        r["roof_gbps"] for r in figures["rows"] if r["threads"] == threads and "roof_gbps" in r
    ]
    overall = figures["roof_gbps_one" if threads == 1 else "roof_gbps_all"]
    return float(statistics.median(found) if found else overall)


def arithmetic_roof(rows: list[Row], dtype: str) -> float | None:
    """G multiply-adds/s by which the path multiplies such KV, where that was measured."""
    found = [
        row["arithmetic_gbps"] * row["macs_per_byte"]
        for row in rows
        if row["dtype"] == dtype and "arithmetic_gbps" in row
    ]
    return statistics.median(found) if found else None


def draw_ceilings(panel: Axes, figures: Row, threads: int, colours: dict[str, str]) -> None:
    """Memory's is level. Each path's arithmetic falls, as more of it falls to a byte; it is shown
    where it binds, for floats (or bf16 by its dot products) and for int8."""
    shown = [intensity(row) for row in figures["rows"]]
    at = np.geomspace(min(shown) / 1.3, max(shown) * 1.3, 400)
    roof = memory_roof(figures, threads)
    panel.axhline(roof, color="black", linewidth=1.2)
    for isa, colour in colours.items():
        rows = [r for r in figures["rows"] if (r["isa"], r["threads"]) == (isa, threads)]
        for dtype, style in CEILINGS.items():
            gmacs = arithmetic_roof(rows, dtype)
            if gmacs is not None:
                binding = at[gmacs / at <= roof]
                panel.plot(binding, gmacs / binding, color=colour, linewidth=1.2, linestyle=style)
    panel.set_xlim(at[0], at[-1])


def draw_panel(panel: Axes, figures: Row, threads: int, colours: dict[str, str]) -> None:
    """One number of threads: colours are paths, markers KV dtypes."""
    draw_ceilings(panel, figures, threads, colours)
    rows = [row for row in figures["rows"] if row["threads"] == threads]
    for row in rows:
        marker, colour = MARKERS[row["dtype"]], colours[row["isa"]]
        at = intensity(row), row["gbps"]
        panel.scatter(*at, marker=marker, s=20, color=colour, alpha=0.7, linewidths=0)
    panel.set_xscale("log", base=2)
    panel.set_yscale("log", base=2)
    roof = memory_roof(figures, threads)
    panel.set_ylim(min(row["gbps"] for row in rows) / 1.3, roof * 1.6)
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_formatter("{x:g}")
    panel.grid(linewidth=0.3, alpha=0.5)
    panel.set_xlabel("multiply-adds per KV byte (group * q_len / bytes)")
    panel.set_ylabel("KV GB/s")
    panel.set_title(f"{threads} thread{'s' if threads > 1 else ''}, read roof {roof:.1f} GB/s")


def draw(figures: Row, path: Path) -> None:
    """KV GB/s over multiply-adds per byte, one panel per number of threads."""
    counts = sorted({row["threads"] for row in figures["rows"]})
    isas = list(dict.fromkeys(row["isa"] for row in figures["rows"]))
    colours = {isa: f"C{i}" for i, isa in enumerate(isas)}
    picture, panels = plt.subplots(1, len(counts), figsize=(6 * len(counts), 4.8), squeeze=False)
    for panel, threads in zip(panels[0], counts, strict=True):
        draw_panel(panel, figures, threads, colours)
    keys = [
        Line2D([], [], color="black", linewidth=1, label="read roof"),
        *(
            Line2D(
                [], [], color="grey", linewidth=1.2, linestyle=style, label=f"{dtype} arithmetic"
            )
            for dtype, style in CEILINGS.items()
        ),
    ]
    dots: dict[str, Any] = {"linestyle": "", "markersize": 5}
    keys += [Line2D([], [], marker="o", color=colours[isa], label=isa, **dots) for isa in isas]
    for dtype, marker in MARKERS.items():
        keys.append(Line2D([], [], marker=marker, color="grey", label=dtype, **dots))
    picture.tight_layout(rect=(0, 0.08, 1, 1))
    picture.legend(handles=keys, loc="lower center", ncol=len(keys), fontsize=8, frameon=False)
    picture.savefig(path, dpi=120)
    plt.close(picture)


if __name__ == "__main__":
    source = Path(sys.argv[1])
    draw(json.loads(source.read_text()), source.with_suffix(".png"))
