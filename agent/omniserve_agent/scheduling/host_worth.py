"""Whether a prompt should be computed for the host: what that costs, and what it will bring."""

from __future__ import annotations

from omniserve_agent.scheduling.budget import SHORTEST_S
from omniserve_agent.scheduling.costs import Costs, Load
from omniserve_agent.scheduling.jobs import Job, JobIndex, ServiceClass, Stage
from omniserve_agent.scheduling.shared_prompts import next_to_compute

BE = ServiceClass.BE
HORIZON_S = 600.0  # what an offloaded request will yield later than this counts for nothing
HURDLE = 1.5  # times what the device would yield: the host's return lies further off
PRICED_CHUNK_ROWS = 256  # a prompt row's price is taken from a chunk of this size


def prompts_per_token_s(jobs: JobIndex, costs: Costs, layers: int) -> float:
    """What an output token takes of prefill, of the requests that come next; 0 if none do."""
    family = next_to_compute(jobs)
    if not family:
        return 0.0
    return _prompt_s(jobs, costs, layers, family[0]) / (_output(family[0]) * len(family))


def host_pays(jobs: JobIndex, costs: Costs, layers: int, ls: Load, load: Load) -> bool:
    """Whether computing a prompt for the host yields more than the same time on the device.

    A second of prefill brings 1 / (P · row time) of an offloaded request, of which only the
    tokens of the next HORIZON_S count, since it advances a layer per iteration; of all requests
    that wait for this prompt, where several have it in common. Without that second, the D rows
    on the device would put out D / T tokens; and LS, whose KV grows with the length of
    iterations, would leave room for further ones.
    """
    family = next_to_compute(jobs)
    if not family:
        return True
    first, resident = family[0], jobs.count(BE, Stage.DECODE)
    output, prompt_s = _output(first), _prompt_s(jobs, costs, layers, first)
    steady_s = max(SHORTEST_S, costs.predicted(load) + resident * prompt_s / output)
    hops = HORIZON_S / ((layers + 1) * steady_s)
    displaced = ls.keys / max(1, first.predicted_tokens)
    bought = min(output, hops) * len(family)
    return bought / prompt_s >= HURDLE * (resident + displaced) / steady_s


def _prompt_s(jobs: JobIndex, costs: Costs, layers: int, job: Job) -> float:
    """What computing its prompt for the host takes."""
    rows = _prompt_rows(jobs, job)
    chunk_s = costs.staged_call_s(PRICED_CHUNK_ROWS, rows // 2)
    return rows * layers * chunk_s / PRICED_CHUNK_ROWS


def _prompt_rows(jobs: JobIndex, job: Job) -> int:
    """Of its prompt, what is to compute: next to none where a request on the host has the same."""
    return jobs.block_tokens if job.prompt in jobs.offloaded_prompts else job.tokens


def _output(job: Job) -> int:
    return max(1, job.predicted_tokens - job.tokens)
