"""Tables and bench/out/colocation.json of the co-location benchmark."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from colocation_client import CellFigures
from colocation_figures import Calibration, attainment_difference, be_ratio, row
from colocation_setup import Device

OURS, ALONE = "omniserve", "ls_alone"
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
    """The contents of the result file (design.md, section 10)."""
    calibration, slo = run.calibration, run.calibration.slo
    return {
        "device": run.device.name,
        "note": run.device.note,
        "bars": run.device.bars,
        "slo": {"ttft_ms": slo.ttft_ms, "tpot_ms": slo.tpot_ms},
        "highest_rate": calibration.highest_rate,
        "rates": calibration.rates,
        "calibration": asdict(calibration),
        "rows": [
            {"device": run.device.name, "load": load, "policy": policy, **row(cells, slo)}
            for load, policy, cells in run.pairs()
        ],
        "ratios": list(_ratios(run)),
    }


def _ratios(run: Run) -> Iterator[dict[str, Any]]:
    for load, policy, cells in run.pairs():
        for against, metric, figures in _comparisons(run, load, policy, cells):
            if figures is not None:
                yield {
                    "device": run.device.name,
                    "load": load,
                    "metric": metric,
                    "policy": policy,
                    "against": against,
                    **figures,
                }


def _comparisons(
    run: Run, load: str, policy: str, cells: Sequence[CellFigures]
) -> Iterator[tuple[str, str, dict[str, float] | None]]:
    """Each policy's attainment against `ls_alone`; BE of `omniserve` against everybody's."""
    alone = run.cells.get((load, ALONE), ())[: len(cells)]
    if policy != ALONE and len(alone) == len(cells):
        difference = attainment_difference(cells, alone, run.calibration.slo, run.seed)
        yield ALONE, "attainment_points", difference
    ours = run.cells.get((load, OURS), ())[: len(cells)]
    if policy not in (ALONE, OURS) and len(ours) == len(cells):
        yield policy, "be_tokens_ratio", _named(be_ratio(ours, cells))


def _named(figures: dict[str, float] | None) -> dict[str, float] | None:
    return figures


def table(run: Run, contents: Mapping[str, Any]) -> list[Table | str]:
    """What is printed: the conditions, then one line per load and policy."""
    slo, rates = contents["slo"], contents["rates"]
    lines = [
        f"device {run.device.name}: {run.device.note}",
        f"SLO: TTFT {slo['ttft_ms']:.0f} ms, TPOT {slo['tpot_ms']:.1f} ms; "
        f"ls_alone attains 99 % up to {contents['highest_rate']:.2f} requests/s; "
        + ", ".join(f"{load} {rate:.2f}/s" for load, rate in rates.items()),
    ]
    figures = Table(
        *(
            "load",
            "policy",
            "LS",
            "attained/ offered %",
            "points to ls_alone",
            "attained/ finished %",
        ),
        *("refused %", "TTFT p50 / p99 ms", "TPOT p50 / p99 ms", "BE tokens/s"),
        *("omniserve's BE / its", "ceiling"),
    )
    ratios = {
        (
            r["load"],
            r["policy"] if r["metric"] == "attainment_points" else r["against"],
            r["metric"],
        ): r
        for r in contents["ratios"]
    }
    last = None
    for one in contents["rows"]:
        if last not in (None, one["load"]):
            figures.add_section()
        last = one["load"]
        figures.add_row(*_cells(one, ratios))
    return ["\n".join(lines) + "\n", figures]


def _cells(one: Mapping[str, Any], ratios: Mapping[tuple[str, str, str], Any]) -> list[str]:
    name = (one["load"], one["policy"])
    points, ratio = ratios.get((*name, "attainment_points")), ratios.get((*name, "be_tokens_ratio"))
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
