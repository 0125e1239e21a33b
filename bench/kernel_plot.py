"""The roofline picture of kernel.json: `python bench/kernel_plot.py kernel.json` draws it again."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

MARKERS = {"bf16": "o", "f16": "s", "f32": "^", "i8": "D"}


def intensity(row: dict[str, Any]) -> float:
    """Multiply-adds per KV byte."""
    element = {"f32": 4, "i8": 1}.get(row["dtype"], 2)
    return float(row["group"] * row["q_len"] / element)


def draw_panel(panel: Axes, figures: dict[str, Any], threads: int, colours: dict[str, str]) -> None:
    """One number of threads: colours are paths, markers KV dtypes."""
    roof = figures["roof_gbps_one" if threads == 1 else "roof_gbps_all"]
    panel.axhline(roof, color="black", linewidth=1)
    for row in figures["rows"]:
        if row["threads"] == threads:
            marker, colour = MARKERS[row["dtype"]], colours[row["isa"]]
            at = intensity(row), row["gbps"]
            panel.scatter(*at, marker=marker, s=20, color=colour, alpha=0.7, linewidths=0)
    panel.set_xscale("log", base=2)
    panel.set_ylim(bottom=0)
    panel.set_xlabel("multiply-adds per KV byte (group * q_len / bytes)")
    panel.set_ylabel("KV GB/s")
    panel.set_title(f"{threads} thread{'s' if threads > 1 else ''}, roof {roof:.1f} GB/s")


def draw(figures: dict[str, Any], path: Path) -> None:
    """KV GB/s over multiply-adds per byte, one panel per number of threads."""
    counts = sorted({row["threads"] for row in figures["rows"]})
    isas = list(dict.fromkeys(row["isa"] for row in figures["rows"]))
    colours = {isa: f"C{i}" for i, isa in enumerate(isas)}
    picture, panels = plt.subplots(1, len(counts), figsize=(6 * len(counts), 4.8), squeeze=False)
    for panel, threads in zip(panels[0], counts, strict=True):
        draw_panel(panel, figures, threads, colours)
    keys = [Line2D([], [], color="black", linewidth=1, label="read roof")]
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
