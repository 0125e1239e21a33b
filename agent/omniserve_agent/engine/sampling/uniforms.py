"""Uniform numbers that depend on (seed, output position) alone."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

BLOCK = 64  # numbers drawn at once: one generator's set-up costs as much as 64 of its numbers
CACHED_BLOCKS = 4096


class Uniforms:
    """Number k of seed s, in [0, 1): a counter-based generator (Philox), so nothing is stepped."""

    def __init__(self) -> None:
        self._block = lru_cache(maxsize=CACHED_BLOCKS)(_draw_block)

    def number(self, seed: int, position: int) -> float:
        """The same on every machine, in every batch and after every replay."""
        block, offset = divmod(position, BLOCK)
        return float(self._block(seed, block)[offset])


def _draw_block(seed: int, block: int) -> NDArray[np.float64]:
    """Raw bits are numpy's stable promise; its distributions are not."""
    generator = np.random.Philox(key=seed & (2**64 - 1), counter=[0, block, 0, 0])
    bits: NDArray[np.uint64] = generator.random_raw(BLOCK)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
