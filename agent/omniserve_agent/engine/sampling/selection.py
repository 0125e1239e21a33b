"""Maxima, cut-offs and draws over [R, V] rows without sorting the vocabulary."""

from __future__ import annotations

from dataclasses import dataclass

import torch

MAX_BLOCK = 256
SEARCHED_BLOCK = 64
CANDIDATES = (64, 1024)  # how many of the likeliest tokens are sorted before all of them are
BELOW_ONE = 1.0 - 2.0**-40  # keeps a product with the total below the total after rounding


def first_maximum(rows: torch.Tensor) -> torch.Tensor:
    """Index [R] of each row's first maximum.

    On a CPU in two levels, because a maximum is vectorised and its index is not: 16 rows of 49,152
    take 0.07 ms instead of 0.9.
    """
    block = block_size(rows.shape[1])
    if rows.device.type != "cpu" or block == rows.shape[1]:
        return rows.argmax(-1)
    blocks = rows.view(rows.shape[0], -1, block)
    best = blocks.amax(-1).argmax(-1)
    return best * block + _take_block(blocks, best).argmax(-1)


def largest(rows: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and indices [R, count] of each row's largest, downwards; tied ones in any order.

    On a CPU only the blocks with the largest maxima are searched: they hold all of them.
    """
    blocks_count = rows.shape[1] // SEARCHED_BLOCK
    if rows.device.type != "cpu" or rows.shape[1] % SEARCHED_BLOCK or blocks_count < 4 * count:
        values, indices = rows.topk(count, dim=-1)
        return values, indices
    blocks = rows.view(rows.shape[0], blocks_count, SEARCHED_BLOCK)
    best = blocks.amax(-1).topk(count, dim=-1).indices
    searched = blocks.gather(1, best.unsqueeze(-1).expand(-1, -1, SEARCHED_BLOCK)).flatten(1)
    values, places = searched.topk(count, dim=-1)
    starts = best.gather(1, places // SEARCHED_BLOCK) * SEARCHED_BLOCK
    return values, starts + places % SEARCHED_BLOCK


def block_size(columns: int) -> int:
    """The largest power of two up to MAX_BLOCK that divides `columns`; `columns` if it is tiny."""
    size = min(columns & -columns, MAX_BLOCK)
    return size if size >= 16 else columns


def _take_block(blocks: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """blocks [R, B, S], index [R] -> [R, S]."""
    return blocks.gather(1, index.view(-1, 1, 1).expand(-1, 1, blocks.shape[2])).squeeze(1)


def draw(weights: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Inverse CDF in vocabulary order: weights [R, V] >= 0, uniforms [R] float64 -> index [R].

    Never returns an index of weight 0 while the row has a positive weight. Two levels as above.
    """
    blocks = weights.view(weights.shape[0], -1, block_size(weights.shape[1]))
    index, left = _invert(blocks.sum(-1), uniforms)
    inner, _ = _invert(_take_block(blocks, index), left)
    return index * blocks.shape[2] + inner


def _invert(weights: torch.Tensor, uniforms: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The index that each uniform falls on, and how far into its weight, as a share [0, 1)."""
    cumulated = weights.cumsum(-1, dtype=torch.float64)
    target = uniforms.clamp(max=BELOW_ONE)[:, None] * cumulated[:, -1:]
    index = torch.searchsorted(cumulated, target, right=True).clamp_(max=weights.shape[1] - 1)
    weight = weights.gather(1, index).double()
    share = (target - cumulated.gather(1, index) + weight) / weight
    return index.squeeze(1), share.squeeze(1).clamp_(0.0, BELOW_ONE)


@dataclass(frozen=True, slots=True)
class Filters:
    """Per row, [R, 1]: top_k int64 (0 off), top_p float64 (1 off), min_p float32 (0 off)."""

    top_k: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor

    def at(self, rows: torch.Tensor) -> Filters:
        """Only the rows of a mask or index."""
        return Filters(self.top_k[rows], self.top_p[rows], self.min_p[rows])


def cut_offs(
    probabilities: torch.Tensor, filters: Filters, candidates: tuple[int, ...] = CANDIDATES
) -> torch.Tensor:
    """[R, 1]: the least probability that top-k, then top-p over what is left, then min-p keep.

    Tokens as likely as the last one kept are kept too: bfloat16 heads tie often, and a rule that
    cut ties by sort order would make the choice depend on the sort.
    """
    columns = probabilities.shape[1]
    width = min(candidates[0], columns) if candidates else columns
    likeliest, _ = largest(probabilities, width)
    limits, seen = _limits(likeliest, filters)
    # Limits are final where a candidate below all of them was seen.
    unsure = (likeliest[:, -1:] >= seen).squeeze(1)
    if width < columns and bool(unsure.any()):
        limits[unsure] = cut_offs(probabilities[unsure], filters.at(unsure), candidates[1:])
    return limits


def _limits(likeliest: torch.Tensor, filters: Filters) -> tuple[torch.Tensor, torch.Tensor]:
    """Cut-offs within likeliest [R, W], which is sorted downwards, and the least limit used."""
    last = (filters.top_k - 1).clamp(0, likeliest.shape[1] - 1)
    has_k, has_p = filters.top_k > 0, filters.top_p < 1
    by_k = torch.where(has_k, likeliest.gather(1, last), 0.0)
    kept = likeliest.double() * (likeliest >= by_k)
    total = torch.where(has_k, kept.sum(-1, keepdim=True), 1.0)
    before = kept.cumsum(-1) - kept
    nucleus = (before < filters.top_p * total).sum(-1, keepdim=True).clamp_(min=1)
    by_p = torch.where(has_p, likeliest.gather(1, nucleus - 1), 0.0)
    limits = torch.maximum(torch.maximum(by_k, by_p), filters.min_p * likeliest[:, :1])
    # The nucleus is a share of what top-k keeps, so all of that must have been seen too.
    return limits, torch.where(has_k, by_k, limits)
