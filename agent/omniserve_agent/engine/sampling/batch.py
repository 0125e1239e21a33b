"""A batch's sampling parameters as tensors: built once, used while the rows stay the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from omniserve_agent.engine.messages import SamplingParams
from omniserve_agent.engine.sampling.penalties import is_penalised
from omniserve_agent.engine.sampling.selection import Filters

GREEDY_BELOW = 1e-5  # temperatures below are greedy: dividing by them would overflow


@dataclass(frozen=True, slots=True)
class RandomRows:
    """Rows whose token is drawn. `filtered` indexes these rows, `filters` has one row for each."""

    row_numbers: list[int]
    rows: torch.Tensor  # [Q] int64
    temperature: torch.Tensor  # [Q, 1] float32
    filtered: torch.Tensor  # [F] int64
    filters: Filters | None

    @classmethod
    def of(cls, params: Sequence[SamplingParams], device: torch.device) -> RandomRows | None:
        """None when every row is greedy."""
        numbers = [i for i, p in enumerate(params) if p.temperature >= GREEDY_BELOW]
        if not numbers:
            return None
        drawn = [params[i] for i in numbers]
        filtered = [i for i, p in enumerate(drawn) if p.top_k > 0 or p.top_p < 1 or p.min_p > 0]
        return cls(
            row_numbers=numbers,
            rows=torch.tensor(numbers, device=device),
            temperature=_column([p.temperature for p in drawn], torch.float32, device),
            filtered=torch.tensor(filtered, dtype=torch.int64, device=device),
            filters=_filters([drawn[i] for i in filtered], device) if filtered else None,
        )


@dataclass(frozen=True, slots=True)
class LogprobRows:
    """Rows that want log probabilities, and of how many of the likeliest tokens."""

    row_numbers: list[int]
    rows: torch.Tensor  # [Q] int64
    top_counts: list[int]

    @classmethod
    def of(cls, params: Sequence[SamplingParams], device: torch.device) -> LogprobRows | None:
        """None when no row asks."""
        wanted = {i: p.logprobs for i, p in enumerate(params) if p.logprobs is not None}
        if not wanted:
            return None
        numbers = list(wanted)
        return cls(numbers, torch.tensor(numbers, device=device), list(wanted.values()))


@dataclass(frozen=True, slots=True)
class Batch:
    """Parameters of R rows, sorted by what they need."""

    params: tuple[SamplingParams, ...]
    random: RandomRows | None
    logprobs: LogprobRows | None
    bias: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None  # rows, token ids, values
    penalised: list[int]

    @classmethod
    def of(cls, params: Sequence[SamplingParams], device: torch.device) -> Batch:
        """Tensors go to `device`."""
        return cls(
            params=tuple(params),
            random=RandomRows.of(params, device),
            logprobs=LogprobRows.of(params, device),
            bias=_bias(params, device),
            penalised=[i for i, p in enumerate(params) if is_penalised(p)],
        )


def _filters(params: Sequence[SamplingParams], device: torch.device) -> Filters:
    return Filters(
        top_k=_column([p.top_k for p in params], torch.int64, device),
        top_p=_column([p.top_p for p in params], torch.float64, device),
        min_p=_column([p.min_p for p in params], torch.float32, device),
    )


def _column(values: Sequence[float], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype, device=device).unsqueeze(1)


def _bias(
    params: Sequence[SamplingParams], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
    entries = [(i, *entry) for i, p in enumerate(params) for entry in p.logit_bias.items()]
    if not entries:
        return None
    rows, token_ids, values = zip(*entries, strict=True)
    return (
        torch.tensor(rows, device=device),
        torch.tensor(token_ids, device=device),
        torch.tensor(values, dtype=torch.float32, device=device),
    )
