"""How many BE rows decode on the device in an iteration.

Each yields a token per iteration, so as many go on as the deadlines allow; but not past a step edge
of the dense modules where that makes the batch less efficient than stopping there.
"""

from __future__ import annotations

from itertools import accumulate
from typing import NamedTuple

from omniserve_agent.scheduling.budget import Choice, largest_fitting
from omniserve_agent.scheduling.costs import Costs, Load
from omniserve_agent.scheduling.filling import by_service, first_of
from omniserve_agent.scheduling.jobs import JobIndex, ServiceClass, Stage
from omniserve_agent.scheduling.latency import pairs
from omniserve_agent.scheduling.plan import Caps

LS, BE = ServiceClass.LS, ServiceClass.BE


class Until(NamedTuple):
    """How long an iteration may become, in seconds."""

    decode_s: float  # for BE rows that decode
    prefill_s: float  # for BE's prompts on top
    floor_s: float = 0.0  # for the first `floor_rows` that decode: a service is owed them
    floor_rows: int = 0
    floor_service: str | None = None  # its rows come first


def be_device_rows(
    jobs: JobIndex, costs: Costs, caps: Caps, ls: Load, until: Until, coming: int = 0
) -> tuple[int, Load]:
    """Rows of BE on the device beside LS's load, and the load with them.

    `coming`: offloaded requests for which there is room on the device: they decode there at once.
    Places that all these leave are for requests that compute or await their prompts.
    """
    others = jobs.count(BE, Stage.PREFILL, Stage.WAITING)
    most = max(0, caps.max_device_rows - jobs.count(LS, Stage.DECODE))
    resident = first_of(until.floor_service, jobs.at(BE, Stage.DECODE), by_service)
    tokens = [job.tokens for job in resident[:most]]
    tokens += [int(jobs.offloaded_mean)] * min(coming, most - len(tokens))
    if not tokens:
        return min(most, others), ls
    keys = [0, *accumulate(tokens)]

    def with_prompts(rows: int) -> Choice:
        """All rows that fit, and prompts behind them: these fill the step that the rows begin."""
        load = ls.plus(rows, rows, keys[rows])
        remaining = sum([job.remaining for job in jobs.at(BE, Stage.PREFILL)])
        prompts = largest_fitting(
            0,
            min(remaining, caps.be_prefill_rows),
            lambda n: costs.seconds(load.plus(n, 0, 0, pairs(0, n))) <= until.prefill_s,
        )
        whole = load.plus(prompts, 0, 0, pairs(0, prompts))
        return Choice(rows, whole.rows, costs.seconds(whole))

    def seconds(rows: int) -> float:
        return costs.seconds(ls.plus(rows, rows, keys[rows]))

    least = int(ls.rows == 0)  # without LS somebody always goes on
    fitting = largest_fitting(least, len(keys) - 1, lambda rows: seconds(rows) <= until.decode_s)
    rows = costs.worthwhile(ls.rows, fitting, seconds, with_prompts)
    if until.floor_rows > rows:
        owed = min(until.floor_rows, len(keys) - 1)
        rows = max(rows, largest_fitting(0, owed, lambda rows: seconds(rows) <= until.floor_s))
    load = ls.plus(rows, rows, keys[rows])
    return rows + (min(most - rows, others) if rows == len(keys) - 1 else 0), load
