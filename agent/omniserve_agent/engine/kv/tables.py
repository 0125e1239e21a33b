"""A request's KV in one tier: its block table, and the tier that holds many of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from omniserve_agent.engine.kv.blocks import BlockPool, ChainHash, chain_next, chain_start
from omniserve_agent.scheduling.jobs import blocks_for


class KvStore(Protocol):
    """Where the bytes are. Sequences are block tables known to the store."""

    def open_sequence(self) -> int:
        """A new, empty sequence."""

    def set_blocks(self, sequence: int, first: int, blocks: Sequence[int]) -> None:
        """Entries [first, first + len(blocks)) of its table."""

    def truncate(self, sequence: int, tokens: int) -> None:
        """Declare the first `tokens` tokens valid, the rest forgotten."""

    def close_sequence(self, sequence: int) -> None:
        """The sequence is no longer used."""


@dataclass(eq=False)
class PrefixNames:
    """The hash chain of one request's tokens, grown as tokens come."""

    salt: str
    block_tokens: int
    _names: list[ChainHash] = field(default_factory=list)

    def upto(self, tokens: Sequence[int], blocks: int) -> Sequence[ChainHash]:
        """Names of the first `blocks` blocks of `tokens`."""
        while len(self._names) < blocks:
            self._add(tokens)
        return self._names[:blocks]

    def each(self, tokens: Sequence[int], blocks: int) -> Iterator[ChainHash]:
        """The same one by one, none hashed before it is asked for."""
        for index in range(blocks):
            if index == len(self._names):
                self._add(tokens)
            yield self._names[index]

    def _add(self, tokens: Sequence[int]) -> None:
        start = len(self._names) * self.block_tokens
        previous = self._names[-1] if self._names else chain_start(self.salt)
        self._names.append(chain_next(previous, tokens[start : start + self.block_tokens]))


@dataclass(eq=False)
class KvTable:
    """One request's blocks in one tier. `shared_blocks` at the front came from the cache."""

    sequence: int
    blocks: list[int] = field(default_factory=list)
    shared_blocks: int = 0
    registered_blocks: int = 0


@dataclass(eq=False)
class KvTier:
    """One tier: its pool, its store, and the operations on tables that keep both in step."""

    pool: BlockPool
    store: KvStore
    exact: bool = True  # what comes back out is what went in; False: int8
    hit_tokens: int = 0  # not computed because an admitted request's prefix was found
    token_bytes: float = 0.0  # KV of one token, all layers; 0: not known

    @property
    def block_tokens(self) -> int:
        """Tokens per block."""
        return self.pool.block_tokens

    def missing_blocks(self, table: KvTable | None, tokens: int) -> int:
        """Blocks to add before `tokens` tokens fit."""
        return blocks_for(tokens, self.block_tokens) - (len(table.blocks) if table else 0)

    def open(self, names: Iterable[ChainHash]) -> KvTable:
        """A new table that starts with the longest cached prefix of `names`."""
        shared = self.pool.match(names)
        table = KvTable(self.store.open_sequence(), shared, len(shared), len(shared))
        self.store.set_blocks(table.sequence, 0, shared)
        self.store.truncate(table.sequence, len(shared) * self.block_tokens)
        return table

    def grow(self, table: KvTable, tokens: int) -> None:
        """Room for `tokens` tokens in all; OutOfBlocksError changes nothing."""
        missing = self.missing_blocks(table, tokens)
        if missing <= 0:
            return
        added = self.pool.allocate(missing, table.blocks[-1] if table.blocks else -1)
        self.store.set_blocks(table.sequence, len(table.blocks), added)
        table.blocks.extend(added)

    def register(self, table: KvTable, names: Sequence[ChainHash]) -> None:
        """The first len(names) blocks are full and computed: let others find them."""
        for index in range(table.registered_blocks, len(names)):
            self.pool.register(table.blocks[index], names[index])
        table.registered_blocks = max(table.registered_blocks, len(names))

    def close(self, table: KvTable) -> None:
        """Give everything back: the end first, since a prefix is lost from its first block on."""
        self.store.close_sequence(table.sequence)
        self.pool.release(reversed(table.blocks))
        table.blocks = []
