"""Plots of the paper's evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

Row = dict[str, Any]
X_OF = {
    "load": ("rate", "LS requests per second"),
    "slo": ("tpot_slo_ms", "TPOT SLO, ms"),
    "hosts": ("cpu_hosts", "CPU-only hosts"),
    "memory": ("device_share", "share of the device's KV memory"),
}


def draw(rows: list[Row], folder: Path) -> list[Path]:
    """One picture per part: attainment above, BE tokens per second below."""
    paths = []
    for part, (key, label) in X_OF.items():
        chosen = [
            r for r in rows if r["part"] == part and (part != "memory" or r["cpu_hosts"] == 4)
        ]
        if part in ("hosts", "slo"):  # the load sweep's heaviest case is the missing point
            chosen += [r for r in rows if r["part"] == "load" and r["rate"] in _heaviest(rows)]
        if chosen:
            paths.append(_picture(part, key, label, chosen, folder))
    return paths


def _heaviest(rows: list[Row]) -> set[float]:
    loads = [r for r in rows if r["part"] == "load"]
    return {max(r["rate"] for r in loads if r["model"] == m) for m in {r["model"] for r in loads}}


def _picture(part: str, key: str, label: str, rows: list[Row], folder: Path) -> Path:
    columns = sorted({(r["model"], r["be_workload"]) for r in rows})
    figure, axes = plt.subplots(2, len(columns), figsize=(4 * len(columns), 6), squeeze=False)
    for column, (model, be) in enumerate(columns):
        mine = [r for r in rows if (r["model"], r["be_workload"]) == (model, be)]
        for policy in dict.fromkeys(r["policy"] for r in mine):
            line = sorted((r for r in mine if r["policy"] == policy), key=lambda r: r[key])
            x, share = [r[key] for r in line], [r["attained_offered"] for r in line]
            percent = [None if one is None else 100 * one for one in share]
            axes[0][column].plot(x, percent, "o-", label=policy)
            axes[1][column].plot(x, [r["be_tokens_per_s"] for r in line], "o-", label=policy)
        axes[0][column].set(title=f"{model}, {be}", ylim=(-3, 103))
        axes[1][column].set(xlabel=label, ylim=(0, None))
    axes[0][0].set_ylabel("LS attained, % of offered")
    axes[1][0].set_ylabel("BE output tokens/s")
    axes[0][-1].legend(fontsize=7)
    figure.suptitle(f"simulated, {part}")
    figure.tight_layout()
    path = folder / f"paper_{part}.png"
    figure.savefig(path, dpi=90)
    plt.close(figure)
    return path
