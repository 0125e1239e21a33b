"""How long a policy thinks: 100 LS and 400 BE requests, at 32 and 80 layers, as Python interprets
it and as images have it, compiled (docs/decisions/0010).

Both sides make the same plans (`plan_drive.py`), each round in a process of its own, in turn.
Single runs hold what the machine does between two plans; the least of all rounds of each plan does
not. bench/out/plan.json.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import numpy as np
from rich.console import Console
from rich.table import Table

import compiled
import report
from plan_drive import MACHINES, Order, Times

DRIVE = Path(__file__).with_name("plan_drive.py")
TIMEOUT_S = 600
SIDES = ("compiled", "interpreted")


def measure(order: Order, rounds: int) -> dict[str, list[Times]]:
    """Rounds of both sides, in turn."""
    places = dict(zip(SIDES, (compiled.folder(), None), strict=True))
    found: dict[str, list[Times]] = {side: [] for side in SIDES}
    for _ in range(rounds):
        for side, place in places.items():
            times = _run(order, place)
            if times.compiled != (place is not None):
                raise RuntimeError(f"{side} plans were not made by {place or 'the sources'}")
            found[side].append(times)
    return found


def _run(order: Order, place: Path | None) -> Times:
    done = subprocess.run(
        [sys.executable, str(DRIVE), msgspec.json.encode(order).decode()],
        env=compiled.environment(place),
        stdout=subprocess.PIPE,
        timeout=TIMEOUT_S,
        check=True,
    )
    return msgspec.json.decode(done.stdout, type=Times)


def row(order: Order, side: str, rounds: Sequence[Times]) -> dict[str, Any]:
    """Microseconds: of the median round, and of the least of all rounds of each plan."""
    table = 1e6 * np.array([times.seconds for times in rounds])
    least = table.min(axis=0)
    p50, p99 = (np.percentile(table, share, axis=1).tolist() for share in (50, 99))
    return {
        "side": side,
        "layers": order.layers,
        "ls": order.ls,
        "be": order.be,
        "plan_us_p50": median(p50),
        "plan_us_p99": median(p99),
        "plan_us_max": float(table.max()),
        "rounds_us_p50": p50,
        "rounds_us_p99": p99,
        "least_us_p50": float(np.percentile(least, 50)),
        "least_us_p99": float(np.percentile(least, 99)),
        "stages": rounds[0].stages,
    }


def show(rows: Sequence[dict[str, Any]]) -> None:
    """On the terminal."""
    table = Table("layers", "plans", "us p50", "p99", "max", "least of rounds p50", "p99")
    figures = ("plan_us_p50", "plan_us_p99", "plan_us_max", "least_us_p50", "least_us_p99")
    for one in rows:
        table.add_row(str(one["layers"]), one["side"], *(f"{one[name]:.0f}" for name in figures))
    Console().print(table)
    for one in rows[:: len(SIDES)]:
        stages = ", ".join(f"{name} {count:.0f}" for name, count in one["stages"].items())
        Console().print(f"{one['layers']} layers, requests by stage (mean): {stages}")


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ls", type=int, default=100)
    parser.add_argument("--be", type=int, default=400)
    parser.add_argument("--plans", type=int, default=4000)
    parser.add_argument("--warm-up", type=int, default=1500, help="iterations before plans count")
    parser.add_argument("--rounds", type=int, default=5, help="of each side")
    parser.add_argument("--policy", default="omniserve")
    parser.add_argument("--seed", type=int, default=0)
    options = vars(parser.parse_args())
    rounds, rows = options.pop("rounds"), []
    for layers in MACHINES:
        order = Order(layers=layers, **options)
        rows += [row(order, side, times) for side, times in measure(order, rounds).items()]
    show(rows)
    head = {"policy": options["policy"], "rounds": rounds, "rows": rows}
    report.write("plan", head | rows[0], seed=options["seed"])


if __name__ == "__main__":
    main()
