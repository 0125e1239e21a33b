"""How long an iteration may take: until the earliest deadline of a token, and of prompts that wait.

LS decode rows set a deadline each (`deadlines.py`). A prompt's laxity is what is left until its
first token is due once everything that has to be computed before it is subtracted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import inf
from typing import NamedTuple

from omniserve_agent.scheduling.deadlines import USABLE_CREDIT_TOKENS, Deadlines
from omniserve_agent.scheduling.jobs import Job


class Pace(NamedTuple):
    """Of LS rows that decode, in seconds; inf where no row can attain."""

    slack_s: float = inf  # until the next token is due
    saving_s: float = inf  # the same with what requests save for bursts of prompts; at most slack
    tpot_s: float = inf  # the shortest


def decode_slack(
    jobs: Sequence[Job],
    deadlines: Sequence[Deadlines],
    now_s: float,
    fastest_s: float,
    saved: float = 0.0,
) -> Pace:
    """From the jobs that decode, and their deadlines in any order. Only rows that the fastest
    iteration would make late are asked whether they can still attain.

    `saved`: the share of what requests save at most for bursts.
    """
    if not deadlines:
        return Pace()
    latest_s = now_s + fastest_s
    due_s = min([d.due_s for d in deadlines])
    paced, behind_s, behind_tpot_s = deadlines, inf, inf
    if due_s < latest_s:
        paced = [d for d in deadlines if d.due_s >= latest_s]
        due_s = min([d.due_s for d in paced], default=inf)
        behind_s, behind_tpot_s = _behind(jobs, now_s, fastest_s)
    # A row that lost its first token is due at no time, and its pace binds nobody.
    tpot_s = min([d.tpot_s for d in paced if d.due_s < inf], default=inf)
    tpot_s = min(tpot_s, behind_tpot_s)
    slack_s = min(behind_s, _usable(due_s - now_s, tpot_s))
    if not saved:
        return Pace(slack_s, min(slack_s, max(0.0, due_s - now_s)), tpot_s)
    unsaved_s = min([d.due_s - saved * d.saving_s for d in paced], default=inf) - now_s
    return Pace(slack_s, min(slack_s, max(0.0, unsaved_s)), tpot_s)


def _usable(slack_s: float, tpot_s: float) -> float:
    return min(slack_s, USABLE_CREDIT_TOKENS * tpot_s) if slack_s < inf else inf


def _behind(jobs: Sequence[Job], now_s: float, fastest_s: float) -> tuple[float, float]:
    """Slack of the rows that will be late and can still come back to their pace, and the shortest
    pace; inf without."""
    latest_s, slack_s, tpot_s = now_s + fastest_s, inf, inf
    late = [(job, d) for job in jobs if (d := job.deadlines) is not None and d.due_s < latest_s]
    for job, deadlines in late:
        if deadlines.reachable(now_s, job.max_total_tokens - job.tokens, fastest_s):
            slack_s = min(slack_s, max(0.0, deadlines.due_s - now_s))
            tpot_s = min(tpot_s, deadlines.tpot_s)
    return slack_s, tpot_s


class Prompts(NamedTuple):
    """LS prompts in the order they are computed."""

    order: tuple[Job, ...] = ()
    slack_s: float = inf  # what others may take now without one of them missing
    ahead_s: float = 0.0  # what all of them take: an arrival comes behind


def least_laxity(jobs: Iterable[Job], now_s: float, row_s: float) -> Prompts:
    """Order by priority, then by laxity, where a prompt row takes `row_s` seconds.

    A prompt that can no longer attain sets no deadline. It gives way to those that can for one more
    TTFT, and is then ahead of whatever came since: late requests neither pull others down with them
    nor starve.
    """
    keyed, unbound = [], []
    for job in jobs:
        deadlines = job.deadlines
        if deadlines is None:
            unbound.append(job)
            continue
        start_s = deadlines.due_s - job.remaining * row_s
        hopeless = start_s < now_s
        key_s = deadlines.due_s + deadlines.ttft_s if hopeless else start_s
        keyed.append((-job.priority, key_s, job.arrival, hopeless, job))
    keyed.sort()
    slack_s, ahead_s = inf, 0.0
    for _, start_s, _, hopeless, job in keyed:
        # start_s has the job's own time subtracted: only what is before it comes on top.
        if not hopeless and start_s - ahead_s >= now_s:
            slack_s = min(slack_s, start_s - ahead_s - now_s)
        ahead_s += job.remaining * row_s
    return Prompts((*(entry[-1] for entry in keyed), *unbound), slack_s, ahead_s)
