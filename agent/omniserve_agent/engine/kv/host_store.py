"""An arena of the native library as a `KvStore`: the host tier, and the CPU device's tier."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from omniserve_native import Arena


class ArenaStore:
    """Sequences of one arena."""

    def __init__(self, arena: Arena) -> None:
        self.arena = arena

    def open_sequence(self) -> int:
        """See `KvStore`."""
        return self.arena.open_sequence()

    def set_blocks(self, sequence: int, first: int, blocks: Sequence[int]) -> None:
        """See `KvStore`."""
        if blocks:
            self.arena.set_blocks(sequence, first, np.asarray(blocks, np.int32))

    def truncate(self, sequence: int, tokens: int) -> None:
        """See `KvStore`."""
        self.arena.truncate(sequence, tokens)

    def close_sequence(self, sequence: int) -> None:
        """See `KvStore`."""
        self.arena.release_sequence(sequence)
