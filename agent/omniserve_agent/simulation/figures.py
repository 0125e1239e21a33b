"""What runs showed, as one row of the result tables; of one engine or of several together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from omniserve_agent.scheduling.ceiling import BeFlow, binding

MS = 1e3


@dataclass(frozen=True, slots=True)
class Figures:
    """One row of the result tables. Result files have these names: older ones are read by them."""

    policy: str
    offered: int
    attained_offered: float
    attained_finished: float
    refused_share: float
    ttft_ms_p50: float
    ttft_ms_p99: float
    tpot_ms_p50: float
    tpot_ms_p99: float
    be_tokens_per_s: float
    ceiling: str
    be_prefill_tokens_per_s: float = 0.0
    iteration_ms: float = 0.0
    rows_in_flight: float = 0.0
    host_busy_share: float = 0.0
    refused_would_attain: float | None = None
    admitted_missed: int = 0

    def row(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Seen:
    """One engine from the end of its warm-up on. Times in seconds; LS requests by how they ended,
    everything else over `span_s`."""

    span_s: float
    ttfts: Sequence[float]  # of the requests that ended
    tpots: Sequence[float]  # of those with several tokens
    attained: int
    missed: int  # unfinished, and certain to miss
    refused: int
    be_tokens: float
    host_tokens: float  # of them, those of rows whose attention a host computed
    be_prefill_tokens: int
    iterations: int
    waited: int  # of them, for the host at every layer
    row_seconds: float  # rows in flight, summed over time
    hops: int  # that came to their end
    hop_tokens: int  # theirs
    guessed: int  # in them
    lanes: int  # that rows in flight could have, at each layer of an iteration
    host_busy_s: float  # mean over hosts
    prefilling: bool

    @property
    def offered(self) -> int:
        """LS requests that count."""
        return len(self.ttfts) + self.missed + self.refused


def figures_of(seen: Sequence[Seen], layers: int, policy: str, engines: int) -> Figures:
    """Of `engines` engines, of which those in `seen` were simulated: one that stands for all, or
    each. LS requests are theirs together, BE rates are scaled to all engines."""
    flow = _flow(seen, layers)
    ended = sum(len(one.ttfts) for one in seen)
    offered = sum(one.offered for one in seen)
    attained = sum(one.attained for one in seen)
    refused = sum(one.refused for one in seen)
    ttft_ms = _percentiles_ms([s for one in seen for s in one.ttfts])
    tpot_ms = _percentiles_ms([s for one in seen for s in one.tpots])
    return Figures(
        policy=policy,
        offered=offered,
        attained_offered=attained / offered if offered else float("nan"),
        attained_finished=attained / ended if ended else float("nan"),
        refused_share=refused / offered if offered else 0.0,
        ttft_ms_p50=ttft_ms[0],
        ttft_ms_p99=ttft_ms[1],
        tpot_ms_p50=tpot_ms[0],
        tpot_ms_p99=tpot_ms[1],
        be_tokens_per_s=flow.output_tokens_per_s * engines,
        ceiling=binding(flow),
        be_prefill_tokens_per_s=flow.prefill_tokens_per_s * engines,
        iteration_ms=flow.iteration_s * MS,
        rows_in_flight=flow.rows_in_flight,
        host_busy_share=_mean([one.host_busy_s / one.span_s for one in seen]),
        admitted_missed=offered - refused - attained,
    )


def _flow(seen: Sequence[Seen], layers: int) -> BeFlow:
    """Of the average engine."""
    busy = _mean([one.host_busy_s / one.span_s for one in seen])
    made = sum(one.be_tokens for one in seen)
    hops = max(1, sum(one.hops for one in seen))
    iterations = sum(max(1, one.iterations) for one in seen)
    return BeFlow(
        rows_in_flight=_mean([one.row_seconds / one.span_s for one in seen]),
        tokens_per_hop=max(1.0, sum(one.hop_tokens for one in seen) / hops),
        rows_per_hop=1.0 + sum(one.guessed for one in seen) / hops,
        layers=layers,
        iteration_s=sum(one.span_s for one in seen) / iterations,
        waited_share=sum(one.waited for one in seen) / iterations,
        lanes=sum(one.lanes for one in seen) / iterations,
        output_tokens_per_s=_mean([one.be_tokens / one.span_s for one in seen]),
        host_tokens_per_s=_mean([one.host_tokens / one.span_s for one in seen]),
        host_busy_share=min(1.0, busy),
        prefill_tokens_per_s=_mean([one.be_prefill_tokens / one.span_s for one in seen]),
        output_per_prompt_token=made / max(1, sum(one.be_prefill_tokens for one in seen)),
        prefilling=any(one.prefilling for one in seen),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _percentiles_ms(seconds: Sequence[float]) -> tuple[float, float]:
    """Median and 99th; not a number where there is none."""
    found = np.percentile(seconds or [float("nan")], (50, 99)) * MS
    return float(found[0]), float(found[1])
