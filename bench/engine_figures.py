"""From rounds to the rows of engine.json and the table. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from spread import spread

Row = dict[str, Any]


@dataclass(frozen=True)
class Round:
    """One side's figures of one round."""

    tpot_ms: float  # one stream
    ttft_ms: float  # one stream
    batch_tpot_ms: float
    decode_tokens_per_s: float  # of the batch
    prefill_tokens_per_s: float  # of the batch


Figure = Callable[[Round], float]
ONE_STREAM: Mapping[str, Figure] = {
    "tpot_ms": lambda r: r.tpot_ms,
    "ttft_ms": lambda r: r.ttft_ms,
    "decode_tokens_per_s": lambda r: 1e3 / r.tpot_ms,
}
BATCH: Mapping[str, Figure] = {
    "tpot_ms": lambda r: r.batch_tpot_ms,
    "decode_tokens_per_s": lambda r: r.decode_tokens_per_s,
    "prefill_tokens_per_s": lambda r: r.prefill_tokens_per_s,
}
NULLS = ("tpot_ms", "decode_tokens_per_s", "prefill_tokens_per_s")


def engine_row(
    common: Row, streams: int, own: Sequence[Round], peer: Sequence[Round] | None
) -> Row:
    """A row of engine.json; each figure is a median over rounds, `*_range` its least and largest.

    `*_ratio` is ours over the peer's of the same round. Peer fields are null without a peer.
    """
    figures = ONE_STREAM if streams == 1 else BATCH
    row = common | {"streams": streams, "rounds": len(own)} | dict.fromkeys(NULLS)
    row |= {f"peer_{name}": None for name in NULLS}
    for name, figure in figures.items():
        row |= spread(name, [figure(r) for r in own])
        if peer is not None:
            row |= spread(f"peer_{name}", [figure(r) for r in peer])
            pairs = zip(own, peer, strict=True)
            row |= spread(f"{name}_ratio", [figure(ours) / figure(its) for ours, its in pairs])
    return row


def table(rows: Sequence[Row]) -> Table:
    """Medians with ranges, ours and the peer's."""
    result = Table(title="engine: SmolLM2-135M bfloat16, medians (least to largest round)")
    for title in ("device", "streams", "figure", "OmniServe", "peer", "ours / peer's"):
        result.add_column(title, justify="left" if title in ("device", "figure") else "right")
    for row in rows:
        for name in ONE_STREAM if row["streams"] == 1 else BATCH:
            cells = [_cell(row, key) for key in (name, f"peer_{name}", f"{name}_ratio")]
            result.add_row(row["device"], str(row["streams"]), name, *cells)
    return result


def _cell(row: Row, name: str) -> str:
    if row.get(name) is None:
        return "-"
    low, high = row[f"{name}_range"]
    return f"{row[name]:.4g} ({low:.4g} to {high:.4g})"
