"""Tables and result files of the co-location benchmark."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from colocation_client import CellFigures
from colocation_figures import (
    TTFT_FACTOR,
    Calibration,
    attainment_difference,
    be_ratio,
    row,
)
from colocation_setup import ABLATIONS, Device

OURS, ALONE = "omniserve", "ls_alone"
POINTS, RATIO = "attainment_points", "be_tokens_ratio"
COLUMNS = (
    "load",
    "policy",
    "LS",
    "attained/ offered %",
    "points to ls_alone",
    "attained/ finished %",
    "refused %",
    "TTFT p50 / p99 ms",
    "TPOT p50 / p99 ms",
    "BE tokens/s",
    "omniserve's BE / its",
    "ceiling",
)
Cells = Mapping[tuple[str, str], Sequence[CellFigures]]  # by load and policy, one per round


@dataclass(frozen=True)
class Run:
    """Everything that was measured."""

    device: Device
    calibration: Calibration
    cells: Cells
    seed: int

    def pairs(self) -> Iterator[tuple[str, str, Sequence[CellFigures]]]:
        """Load, policy and cells of what has any."""
        for (load, policy), cells in self.cells.items():
            if cells:
                yield load, policy, cells


def rows_and_ratios(run: Run) -> dict[str, Any]:
    """The contents of the result file."""
    calibration, slo = run.calibration, run.calibration.slo
    return {
        "device": run.device.name,
        "note": run.device.note,
        "bars": run.device.bars,
        "slo": {
            "ttft_ms": slo.ttft_ms,
            "tpot_ms": slo.tpot_ms,
            "ttft_factor": TTFT_FACTOR,  # times the median of single requests
            "tpot_factor": run.device.tpot_factor,  # times `ls_alone`'s median at medium load
        },
        "objective": run.device.objective,  # what `ls_alone` attains at the highest rate
        "highest_rate": calibration.highest_rate,
        "rates": calibration.rates,
        "calibration": asdict(calibration),
        "rows": [
            {"device": run.device.name, "load": load, "policy": policy, **row(cells, slo)}
            for load, policy, cells in run.pairs()
        ],
        "ratios": list(_ratios(run)),
        "notes": _notes({policy for _, policy, _ in run.pairs()}),
    }


def _notes(policies: Collection[str]) -> dict[str, str]:
    """What must be known of a row, by its policy."""
    return {row.name: row.note for row in ABLATIONS if row.note and row.name in policies}


def _ratios(run: Run) -> Iterator[dict[str, Any]]:
    """Attainment of every policy against `ls_alone`; BE of `omniserve` against every other's."""
    for load, policy, cells in run.pairs():
        head = {"device": run.device.name, "load": load}
        alone, ours = (run.cells.get((load, name), ()) for name in (ALONE, OURS))
        if policy != ALONE and alone:
            points = attainment_difference(
                *_same_rounds(cells, alone), run.calibration.slo, run.seed
            )
            yield head | {"metric": POINTS, "policy": policy, "against": ALONE} | points
        ratio = be_ratio(*_same_rounds(ours, cells))
        if policy != OURS and ratio is not None:
            yield head | {"metric": RATIO, "policy": OURS, "against": policy} | ratio


def _same_rounds(
    ours: Sequence[CellFigures], theirs: Sequence[CellFigures]
) -> tuple[Sequence[CellFigures], Sequence[CellFigures]]:
    """The rounds that both have; rounds are measured in order."""
    rounds = min(len(ours), len(theirs))
    return ours[:rounds], theirs[:rounds]


def table(run: Run, contents: Mapping[str, Any]) -> list[Table | str]:
    """What is printed: the conditions, then one line per load and policy."""
    slo, rates = contents["slo"], contents["rates"]
    lines = [
        f"device {run.device.name}: {run.device.note}",
        f"SLO: TTFT {slo['ttft_ms']:.0f} ms ({slo['ttft_factor']:g} times the median of single "
        f"requests), TPOT {slo['tpot_ms']:.1f} ms ({slo['tpot_factor']:g} times ls_alone's median "
        "at medium load)",
        f"ls_alone attains {contents['objective']:.0%} (the objective) up to "
        f"{contents['highest_rate']:.2f} requests/s; "
        + ", ".join(f"{load} {rate:.2f}/s" for load, rate in rates.items()),
        *(f"{policy}: {note}" for policy, note in contents["notes"].items()),
    ]
    figures = Table(*COLUMNS)
    points = {(r["load"], r["policy"]): r for r in contents["ratios"] if r["metric"] == POINTS}
    ratios = {(r["load"], r["against"]): r for r in contents["ratios"] if r["metric"] == RATIO}
    for load, rows in itertools.groupby(contents["rows"], lambda one: one["load"]):
        for one in rows:
            name = (load, one["policy"])
            figures.add_row(*_cells(one, points.get(name), ratios.get(name)))
        figures.add_section()
    return ["\n".join(lines) + "\n", figures]


def _cells(
    one: Mapping[str, Any],
    points: Mapping[str, float] | None,
    ratio: Mapping[str, float] | None,
) -> list[str]:
    return [
        one["load"],
        one["policy"],
        str(one["offered"]),
        f"{100 * one['attained_offered']:.2f}",
        _range(points, "+.2f"),
        f"{100 * one['attained_finished']:.2f}",
        f"{100 * one['refused_share']:.1f}",
        f"{_ms(one['ttft_ms_p50'])} / {_ms(one['ttft_ms_p99'])}",
        f"{_ms(one['tpot_ms_p50'])} / {_ms(one['tpot_ms_p99'])}",
        f"{one['be_tokens_per_s']:.1f}",
        _range(ratio, ".2f"),
        one["ceiling"],
    ]


def _range(figures: Mapping[str, float] | None, form: str) -> str:
    if figures is None:
        return ""
    low, high = format(figures["low"], form), format(figures["high"], form)
    return f"{format(figures['median'], form)} [{low}, {high}]"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
