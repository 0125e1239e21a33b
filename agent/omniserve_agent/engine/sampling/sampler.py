"""The sampler: logits and rows in, token ids and log probabilities out."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from omniserve_agent.engine.messages import SamplingParams, TokenLogprob
from omniserve_agent.engine.sampling.batch import Batch, RandomRows
from omniserve_agent.engine.sampling.penalties import Histories, History, penalise_
from omniserve_agent.engine.sampling.selection import cut_offs, draw, first_maximum, largest
from omniserve_agent.engine.sampling.uniforms import Uniforms

KEPT_BATCHES = 64


class SamplingRow(Protocol):
    """Where a token is chosen. `prompt` and `output` (at least `output_index` tokens) are read
    only where the parameters have penalties; `handle` names the request."""

    @property
    def handle(self) -> int: ...
    @property
    def params(self) -> SamplingParams: ...
    @property
    def output_index(self) -> int: ...
    @property
    def prompt(self) -> Sequence[int]: ...
    @property
    def output(self) -> Sequence[int]: ...


@dataclass(frozen=True, slots=True)
class RowLogprobs:
    """Log probabilities of one row under the raw logits; `top` is likeliest first."""

    chosen: TokenLogprob
    top: list[TokenLogprob]


@dataclass(frozen=True, slots=True)
class _WantedLogprobs:
    rows: list[int]
    top_counts: list[int]
    chosen: torch.Tensor  # [Q]
    top_values: torch.Tensor  # [Q, max top count]
    top_ids: torch.Tensor


@dataclass(frozen=True, slots=True)
class Sampled:
    """`token_ids` int64 [R] on the logits' device, usable as the next input without a copy back."""

    token_ids: torch.Tensor
    wanted: _WantedLogprobs | None = None

    def logprobs(self) -> list[RowLogprobs | None]:
        """Per row, None where it did not ask. Waits for the device."""
        result: list[RowLogprobs | None] = [None] * self.token_ids.shape[0]
        if self.wanted is None:
            return result
        wanted, ids = self.wanted, self.token_ids.tolist()
        chosen, values, top_ids = (
            tensor.tolist() for tensor in (wanted.chosen, wanted.top_values, wanted.top_ids)
        )
        for number, (row, count) in enumerate(zip(wanted.rows, wanted.top_counts, strict=True)):
            pairs = zip(top_ids[number][:count], values[number][:count], strict=True)
            top = [TokenLogprob(token_id, value) for token_id, value in pairs]
            result[row] = RowLogprobs(TokenLogprob(ids[row], chosen[number]), top)
        return result


class Sampler:
    """Keeps what repeats between iterations: parameter tensors per batch, histories, uniforms."""

    def __init__(self) -> None:
        self._uniforms = Uniforms()
        self._histories = Histories()
        self._batches: OrderedDict[tuple[int, ...], Batch] = OrderedDict()

    @torch.inference_mode()
    def sample(self, logits: torch.Tensor, rows: Sequence[SamplingRow]) -> Sampled:
        """Choose one token per row of float32 logits [R, V], which are left as they are.

        The choice of a row depends on its logits, parameters and output index alone. Parameters
        must have passed `check_params`. Raises ValueError when rows and logits do not match.
        """
        if logits.shape[0] != len(rows):
            raise ValueError(f"{logits.shape[0]} rows of logits for {len(rows)} rows to sample")
        if not rows:
            return Sampled(torch.empty(0, dtype=torch.int64, device=logits.device))
        batch = self._batch(logits, rows)
        scores = self._adjusted(logits, batch, rows)
        token_ids = first_maximum(scores)
        if batch.random is not None:
            token_ids[batch.random.rows] = self._draw(scores, batch.random, rows)
        return Sampled(token_ids, _logprobs(logits, token_ids, batch))

    def _batch(self, logits: torch.Tensor, rows: Sequence[SamplingRow]) -> Batch:
        """By identity of the parameters: a kept batch holds them, so no id is used twice."""
        params = [row.params for row in rows]
        key = (logits.device.index or 0, logits.shape[1], *map(id, params))
        batch = self._batches.get(key)
        if batch is None:
            batch = self._batches[key] = Batch.of(params, logits.device)
            if len(self._batches) > KEPT_BATCHES:
                self._batches.popitem(last=False)
        self._batches.move_to_end(key)
        return batch

    def _adjusted(
        self, logits: torch.Tensor, batch: Batch, rows: Sequence[SamplingRow]
    ) -> torch.Tensor:
        if batch.bias is None and not batch.penalised:
            return logits
        scores = logits.clone()
        if batch.bias is not None:
            row, token_id, value = batch.bias
            scores[row, token_id] += value
        if batch.penalised:
            penalise_(
                scores, [(i, rows[i].params, self._history(rows[i])) for i in batch.penalised]
            )
        return scores

    def _history(self, row: SamplingRow) -> History:
        return self._histories.at(row.handle, row.prompt, row.output, row.output_index)

    def _draw(
        self, scores: torch.Tensor, random: RandomRows, rows: Sequence[SamplingRow]
    ) -> torch.Tensor:
        drawn = scores if len(random.row_numbers) == len(rows) else scores[random.rows]
        probabilities = (drawn / random.temperature).softmax(-1)
        if random.filters is not None:
            every = random.filtered.shape[0] == probabilities.shape[0]
            some = probabilities if every else probabilities[random.filtered]
            kept = some.clone().ge_(cut_offs(some, random.filters)).mul_(some)
            probabilities = kept if every else probabilities.index_copy_(0, random.filtered, kept)
        numbers = [
            self._uniforms.number(rows[i].params.seed, rows[i].output_index)
            for i in random.row_numbers
        ]
        uniforms = torch.tensor(numbers, dtype=torch.float64, device=scores.device)
        return draw(probabilities, uniforms)


def _logprobs(
    logits: torch.Tensor, token_ids: torch.Tensor, batch: Batch
) -> _WantedLogprobs | None:
    if batch.logprobs is None:
        return None
    wanted = batch.logprobs
    raw = logits[wanted.rows].log_softmax(-1)
    chosen = raw.gather(1, token_ids[wanted.rows, None]).squeeze(1)
    values, ids = largest(raw, max(wanted.top_counts))
    return _WantedLogprobs(wanted.row_numbers, wanted.top_counts, chosen, values, ids)
