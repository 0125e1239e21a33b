"""What the terminal shows of kernel.json."""

from __future__ import annotations

from typing import Any

from rich.table import Table

PEERS = ("vllm", "torch", "neo_like")
SHAPE = ("isa", "dtype", "group", "head_size", "kv_heads", "q_len", "context", "rows", "threads")
ROOFS = ("of roof", "of FMA", "bound", "of bound")


def rows_table(rows: list[dict[str, Any]]) -> Table:
    """A line for each shape and number of threads."""
    table = Table(title="decode attention, KV GB/s")
    for name in (*SHAPE, "GB/s", *ROOFS, "/vLLM", "/torch", "/NEO-like", "/twin", "error"):
        table.add_column(name.replace("_", " "), justify="right")
    for row in rows:
        shares = [f"{row[f'{name}_fraction']:.0%}" for name in ("roof", "fma", "bound")]
        shares.insert(2, f"{row['bound_gbps']:.1f}")
        against = *(f"ratio_{peer}" for peer in PEERS), "rows_over_twin"
        times = ["-" if row[name] is None else f"{row[name]:.1f}" for name in against]
        figures = f"{row['gbps']:.1f}", *shares, *times, f"{row['max_error']:.0e}"
        shape = {name: str(row[name]) for name in SHAPE}
        if row["lengths"] != "alike":
            shape["context"] += f", {row['lengths']}"
        table.add_row(*shape.values(), *figures)
    return table


def targets_table(targets: dict[str, dict[str, Any]]) -> Table:
    """A line for each target."""
    table = Table(title="targets")
    for name in ("", "wanted", "reached", "shapes", "arithmetic forbids", "missed", "holds"):
        table.add_column(name, justify="left" if not name else "right")
    for name, figures in targets.items():
        wanted = f"{'at most' if figures['at_most'] else 'at least'} {figures['target']:.3g}"
        reached = "-"
        if figures["shapes"]:
            ends = f"{figures['least']:.3g} to {figures['largest']:.3g}"
            reached = f"{figures['median']:.3g} ({ends})"
        holds = {None: "not measured", True: "yes", False: "no"}[figures["holds"]]
        counts = [str(figures[name]) for name in ("shapes", "forbidden", "missed")]
        table.add_row(name, f"{wanted}, {figures['by']}", reached, *counts, holds)
    return table
