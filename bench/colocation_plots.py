"""Plots of the co-location benchmark: attainment and BE tokens per second by load."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt


def draw(contents: Mapping[str, Any], folder: Path) -> list[Path]:
    """One picture with two panels; device and note are in its title."""
    rows = contents["rows"]
    loads, policies = (list(dict.fromkeys(r[name] for r in rows)) for name in ("load", "policy"))
    if not rows:
        return []
    figure, (above, below) = plt.subplots(2, 1, figsize=(2 + 3 * len(loads), 7))
    width = 0.8 / len(policies)
    for number, policy in enumerate(policies):
        mine = [r for r in rows if r["policy"] == policy]
        at = [loads.index(r["load"]) + (number - (len(policies) - 1) / 2) * width for r in mine]
        attained = [100 * r["attained_offered"] for r in mine]
        above.bar(at, attained, width, label=policy)
        below.bar(at, [r["be_tokens_per_s"] for r in mine], width, label=policy)
    above.set(ylabel="LS attained, % of offered", ylim=(0, 103))
    below.set(ylabel="BE output tokens/s")
    for axis in (above, below):
        axis.set_xticks(range(len(loads)), loads)
    above.legend(fontsize=7, ncols=2)
    figure.suptitle(f"{contents['device']}: {contents['note']}", fontsize=9)
    figure.tight_layout()
    path = folder / f"colocation_{contents['device']}.png"
    figure.savefig(path, dpi=90)
    plt.close(figure)
    return [path]
