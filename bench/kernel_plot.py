"""The roofline picture of kernel.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

MARKERS = {"bf16": "o", "f16": "s", "f32": "^", "i8": "D"}


def intensity(row: dict[str, Any]) -> float:
    """Multiply-adds per KV byte."""
    element = {"f32": 4, "i8": 1}.get(row["dtype"], 2)
    return float(row["group"] * row["q_len"] / element)


def draw(figures: dict[str, Any], path: Path) -> None:
    """KV GB/s over multiply-adds per byte, one panel per number of threads."""
    counts = sorted({row["threads"] for row in figures["rows"]})
    picture, panels = plt.subplots(1, len(counts), figsize=(6 * len(counts), 4.5), squeeze=False)
    for panel, threads in zip(panels[0], counts, strict=True):
        roof = figures["roof_gbps_one" if threads == 1 else "roof_gbps_all"]
        panel.axhline(roof, color="black", linewidth=1, label="read roof")
        for isa in sorted({row["isa"] for row in figures["rows"]}):
            for dtype, marker in MARKERS.items():
                chosen = [
                    row
                    for row in figures["rows"]
                    if (row["isa"], row["dtype"], row["threads"]) == (isa, dtype, threads)
                ]
                if chosen:
                    across, up = [intensity(r) for r in chosen], [r["gbps"] for r in chosen]
                    panel.scatter(across, up, marker=marker, s=18, label=f"{isa} {dtype}")
        panel.set_xscale("log", base=2)
        panel.set_xlabel("multiply-adds per KV byte (group * q_len / bytes)")
        panel.set_ylabel("KV GB/s")
        panel.set_title(f"{threads} thread{'s' if threads > 1 else ''}")
        panel.legend(fontsize=6)
    picture.tight_layout()
    picture.savefig(path, dpi=120)
    plt.close(picture)
