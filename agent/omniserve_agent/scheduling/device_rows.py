"""How many BE rows decode on the device in an iteration.

Each yields a token per iteration, so as many go on as the deadlines allow; but not past a step edge
of the dense modules where that makes the batch less efficient than stopping there.
"""

from __future__ import annotations

from itertools import accumulate

from omniserve_agent.scheduling.budget import Choice, largest_fitting
from omniserve_agent.scheduling.costs import Costs, Load
from omniserve_agent.scheduling.jobs import JobIndex, ServiceClass, Stage
from omniserve_agent.scheduling.latency import pairs
from omniserve_agent.scheduling.plan import Caps

LS, BE = ServiceClass.LS, ServiceClass.BE


def be_device_rows(
    jobs: JobIndex, costs: Costs, caps: Caps, ls: Load, budget_s: float, prefill_s: float
) -> tuple[int, Load]:
    """Rows of BE on the device beside LS's load within `budget_s`, and the load with them.

    Places that residents leave are for those that come; BE's prompts may take up to `prefill_s`.
    """
    resident = jobs.at(BE, Stage.DECODE)
    others = jobs.count(BE, Stage.PREFILL, Stage.WAITING)
    most = max(0, caps.max_device_rows - jobs.count(LS, Stage.DECODE))
    if not resident or not most:
        return min(most, others), ls
    keys = [0, *accumulate(job.tokens for job in resident[:most])]

    def with_prompts(rows: int) -> Choice:
        """All rows that fit, and prompts behind them: these fill the step that the rows begin."""
        load = ls.plus(rows, rows, keys[rows])
        remaining = sum([job.remaining for job in jobs.at(BE, Stage.PREFILL)])
        prompts = largest_fitting(
            0,
            min(remaining, caps.be_prefill_rows),
            lambda n: costs.seconds(load.plus(n, 0, 0, pairs(0, n))) <= prefill_s,
        )
        whole = load.plus(prompts, 0, 0, pairs(0, prompts))
        return Choice(rows, whole.rows, costs.seconds(whole))

    def seconds(rows: int) -> float:
        return costs.seconds(ls.plus(rows, rows, keys[rows]))

    least = int(ls.rows == 0)  # without LS somebody always goes on
    fitting = largest_fitting(least, len(keys) - 1, lambda rows: seconds(rows) <= budget_s)
    rows = costs.worthwhile(ls.rows, fitting, seconds, with_prompts)
    load = ls.plus(rows, rows, keys[rows])
    return rows + (min(most - rows, others) if rows == len(keys) - 1 else 0), load
