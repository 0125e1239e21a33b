"""`make simulate`: the paper's evaluation in the simulator, beside the paper's figures.

Every policy sees the same requests (paper_cases.py). The settings whose ratio is a headline run
with further seeds. Results: bench/out/paper.json, plots beside it, tables on the terminal.
Finished runs are kept in bench/out/paper.rows.jsonl: what is cut off goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
from datetime import UTC, datetime
from typing import Any

from rich.console import Console

import compiled
import paper_dominated
import paper_headline
import paper_plots
import paper_tables
import report
from paper_cases import cases
from paper_rows import Row, first_seeds
from paper_runs import run_all

Origin = dict[str, Any]  # commit, command, date, seed, seconds
FURTHER_SEEDS = 2
TABLE_WIDTH = 220  # columns, where there is no terminal


def rows_of(args: argparse.Namespace, console: Console) -> tuple[list[Row], dict[str, Origin]]:
    """Of all parts, with where each comes from; those that are not run again, from the file."""
    wanted = [case for case in cases(args.seed) if not args.only or case.part in args.only]
    rows = run_all(wanted, args.seconds, console)
    parts = dict.fromkeys((row["part"] for row in rows), origin(args))
    again = set(parts)
    if args.only:
        old = json.loads((report.OUT / "paper.json").read_text())
        check(old)
        rows, parts = merged(old["rows"], rows), old["parts"] | parts
    further = paper_headline.further(rows, again, args.further_seeds)
    return rows + run_all(further, args.seconds, console), parts


def check(old: dict[str, Any]) -> None:
    """A file whose rows do not say their seed is of before, and cannot be gone on with."""
    if "parts" not in old or any("seed" not in row for row in old["rows"]):
        raise SystemExit("bench/out/paper.json is of an older version: run all parts once")


def merged(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Whole parts of `new` in the place of those in `old`."""
    again = {row["part"] for row in new}
    return [row for row in old if row["part"] not in again] + new


def origin(args: argparse.Namespace) -> Origin:
    """Of what is run now."""
    return {
        "commit": report.commit(),
        "command": " ".join(sys.argv),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": args.seed,
        "seconds": args.seconds,
    }


def head_of(parts: dict[str, Origin]) -> Origin:
    """For the head of the file: what all parts have in common."""
    return {
        key: next(iter(values)) if len(values) == 1 else f"parts of different {key}s"
        for key in ("commit", "command")
        if (values := {part[key] for part in parts.values()})
    }


def arguments() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--seconds",
        type=float,
        default=200.0,
        help="virtual seconds of each run; a multiple where memory is contended",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--further-seeds", type=int, default=FURTHER_SEEDS)
    parser.add_argument(
        "--only",
        action="append",
        choices=sorted({case.part for case in cases()}),
        help="part to run again; the other rows are those of bench/out/paper.json",
    )
    parser.add_argument(
        "--compiled",
        action="store_true",
        help="with the scheduling package compiled, as images have it: the same figures sooner",
    )
    return parser.parse_args()


def contents_of(rows: list[Row], parts: dict[str, Origin]) -> dict[str, Any]:
    """paper.json but for its head. Tables and counts are of each part's first seed."""
    first, ratios = first_seeds(rows), paper_headline.ratios(rows)
    sustained = [paper_dominated.sustained(row) for row in first]
    return {
        "parts": parts,
        "rows": rows,
        "headline": paper_headline.headline(ratios),
        "ratios": ratios,
        "against": paper_tables.against(first),
        "dominated": paper_dominated.dominated(first),
        "dominated_sustained": paper_dominated.dominated(sustained),
    }


def show(console: Console, contents: dict[str, Any]) -> None:
    """All tables."""
    paper_tables.show(console, first_seeds(contents["rows"]))
    paper_headline.show(console, contents["ratios"])
    paper_tables.show_against(console, contents["against"])
    paper_dominated.show(console, contents["dominated"])
    by_prompts = "BE tokens that its prompts sustain"
    paper_dominated.show(console, contents["dominated_sustained"], by_prompts)


def main() -> None:
    """Runs, prints, plots, writes."""
    args = arguments()
    if args.compiled:
        compiled.restart()
    console = Console() if sys.stdout.isatty() else Console(width=TABLE_WIDTH)
    rows, parts = rows_of(args, console)
    contents = head_of(parts) | {"seconds": args.seconds} | contents_of(rows, parts)
    show(console, contents)
    console.print(f"written: {report.write('paper', contents, seed=args.seed)}")
    for path in paper_plots.draw(first_seeds(rows), report.OUT):
        console.print(f"written: {path}")


if __name__ == "__main__":
    main()
