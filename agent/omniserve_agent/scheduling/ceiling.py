"""Which ceiling binds BE throughput: the smallest of four rates.

A rate counts where there is something that it bounds: joins where rows are in flight, prefill where
prompts are computed. Where BE only decodes on the device, that binds: its KV there and LS's slack.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BeFlow:
    """What was seen of BE over an interval. Rates are tokens per second, shares 0 to 1."""

    rows_in_flight: float
    tokens_per_hop: float
    rows_per_hop: float  # 1, and a hop's guesses
    layers: int
    iteration_s: float  # mean
    waited_share: float  # of iterations, those that waited for the host at every layer
    lanes: float  # per layer, that rows in flight could have: mean over iterations
    output_tokens_per_s: float
    host_tokens_per_s: float  # of them, those of rows whose attention the host computed
    host_busy_share: float
    prefill_tokens_per_s: float
    output_per_prompt_token: float
    prefilling: bool  # prompts are being computed


def ceilings(flow: BeFlow) -> dict[str, float]:
    """BE tokens per second each resource would allow if the others did not bind.

    Beside what the device puts out by itself, `iterations` allows rows in flight × tokens per hop /
    ((layers + 1) × iteration time), and a hop of every row in an iteration that waits; `dense_rows`
    one token per lane and iteration, less where rows are guesses; `host_bandwidth` the host's
    present rate at a busy share of 1. `prefill`: the prefill rate × output per prompt token.
    """
    rates, on_device = {}, flow.output_tokens_per_s - flow.host_tokens_per_s
    if flow.rows_in_flight >= 1 and flow.iteration_s > 0:
        passed = flow.waited_share + (1.0 - flow.waited_share) / (flow.layers + 1)
        hops = passed * flow.rows_in_flight / flow.iteration_s
        rates["iterations"] = on_device + hops * flow.tokens_per_hop
        lane_s = flow.iteration_s * flow.rows_per_hop / flow.tokens_per_hop
        rates["dense_rows"] = on_device + flow.lanes / lane_s
        if flow.host_busy_share > 0:
            rates["host_bandwidth"] = on_device + flow.host_tokens_per_s / flow.host_busy_share
    if flow.prefilling:
        rates["prefill"] = flow.prefill_tokens_per_s * flow.output_per_prompt_token
    return rates


def binding(flow: BeFlow) -> str:
    """The name of the smallest ceiling; `device` where BE decodes there alone, else `none`."""
    rates = ceilings(flow)
    if not rates:
        return "device" if flow.output_tokens_per_s > 0 else "none"
    return min(rates, key=lambda name: rates[name])
