"""Which ceiling binds BE throughput (design.md, section 6): the smallest of four rates."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BeFlow:
    """What was seen of BE over an interval. Rates are tokens per second, shares 0 to 1."""

    rows_in_flight: float
    tokens_per_hop: float
    layers: int
    iteration_s: float  # mean
    join_rows: int  # lanes per layer
    output_tokens_per_s: float
    host_busy_share: float
    prefill_tokens_per_s: float
    output_per_prompt_token: float
    prefill_backlog: bool  # prompts are being or waiting to be computed


def ceilings(flow: BeFlow) -> dict[str, float]:
    """BE tokens per second each resource would allow if the others did not bind.

    `iterations`: rows in flight × tokens per hop / ((layers + 1) × iteration time); `dense_rows`:
    one token per lane and iteration; `host_bandwidth`: the present rate at a busy share of 1;
    `prefill`: the prefill rate × output per prompt token.
    """
    rates = {}
    if flow.iteration_s > 0:
        hops = (flow.layers + 1) * flow.iteration_s
        rates["iterations"] = flow.rows_in_flight * flow.tokens_per_hop / hops
        rates["dense_rows"] = flow.join_rows / flow.iteration_s
    if flow.host_busy_share > 0:
        rates["host_bandwidth"] = flow.output_tokens_per_s / flow.host_busy_share
    if flow.prefill_backlog:
        rates["prefill"] = flow.prefill_tokens_per_s * flow.output_per_prompt_token
    return rates


def binding(flow: BeFlow) -> str:
    """The name of the smallest ceiling; `none` where no BE row is at work."""
    rates = ceilings(flow)
    if not rates or (flow.rows_in_flight == 0 and not flow.prefill_backlog):
        return "none"
    return min(rates, key=lambda name: rates[name])
