"""Penalties on tokens that a request has already seen."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from omniserve_agent.engine.messages import SamplingParams

KEPT_HISTORIES = 1024


def is_penalised(params: SamplingParams) -> bool:
    """Whether earlier tokens change the logits."""
    return bool(
        params.presence_penalty or params.frequency_penalty or params.repetition_penalty != 1.0
    )


@dataclass(slots=True)
class History:
    """How often each token was put out; prompt tokens count zero times but are seen."""

    prompt: Sequence[int]
    counts: Counter[int] = field(default_factory=Counter)
    tokens: int = 0  # output tokens counted so far

    def __post_init__(self) -> None:
        self.counts.update(dict.fromkeys(self.prompt, 0))

    def advance(self, output: Sequence[int], tokens: int) -> None:
        """Count up to the first `tokens` of the output."""
        self.counts.update(output[self.tokens : tokens])
        self.tokens = tokens


class Histories:
    """Bounded memory of histories, so that a step costs the new tokens and not the old ones."""

    def __init__(self) -> None:
        self._kept: OrderedDict[int, History] = OrderedDict()

    def at(self, handle: int, prompt: Sequence[int], output: Sequence[int], index: int) -> History:
        """The history before output token `index`. ValueError if the output is not known so far."""
        if len(output) < index:
            raise ValueError(
                f"request {handle}: penalties for output token {index} need {index} known output "
                f"tokens, {len(output)} were given"
            )
        history = self._kept.get(handle)
        if history is None or history.prompt is not prompt or history.tokens > index:
            history = self._kept[handle] = History(prompt)
        history.advance(output, index)
        self._kept.move_to_end(handle)
        if len(self._kept) > KEPT_HISTORIES:
            self._kept.popitem(last=False)
        return history


def penalise_(scores: torch.Tensor, rows: Sequence[tuple[int, SamplingParams, History]]) -> None:
    """Change scores [R, V] in place for (row, parameters, history).

    Repetition first (divides positive and multiplies negative logits of every token seen), then
    frequency and presence of output tokens.
    """
    sizes = [len(history.counts) for _, _, history in rows]
    ids = np.fromiter((i for _, _, h in rows for i in h.counts), np.int64, sum(sizes))
    counts = np.fromiter((c for _, _, h in rows for c in h.counts.values()), np.float32, sum(sizes))
    per_row = [
        (row, p.repetition_penalty, p.frequency_penalty, p.presence_penalty) for row, p, _ in rows
    ]
    row, repetition, frequency, presence = np.repeat(np.array(per_row), sizes, axis=0).T
    subtracted = frequency * counts + presence * (counts > 0)
    _apply(scores, row.astype(np.int64), ids, repetition, subtracted)


def _apply(
    scores: torch.Tensor,
    row: np.ndarray,
    ids: np.ndarray,
    repetition: np.ndarray,
    subtracted: np.ndarray,
) -> None:
    device = scores.device
    where = (torch.from_numpy(row).to(device), torch.from_numpy(ids).to(device))
    factor, minus = (
        torch.from_numpy(values.astype(np.float32)).to(device)
        for values in (repetition, subtracted)
    )
    values = scores[where]
    scores[where] = torch.where(values > 0, values / factor, values * factor) - minus
