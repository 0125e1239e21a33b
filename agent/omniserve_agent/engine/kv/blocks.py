"""Blocks of one tier: reference counts, a free list, and prefixes found again by a hash chain.

A block holds `block_tokens` tokens over all layers. A full, computed block is *registered* under
the hash of its whole prefix; blocks nobody holds stay findable until they are needed (least
recently released first). Both tiers use the same chain, so a prefix has one name everywhere.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence

ChainHash = bytes


class OutOfBlocksError(Exception):
    """The tier has fewer free blocks than asked for."""


def chain_start(salt: str) -> ChainHash:
    """The hash before the first block: requests of different salt share nothing."""
    return hashlib.blake2b(salt.encode(), digest_size=16, person=b"omniserve-kv").digest()


def chain_next(previous: ChainHash, tokens: Sequence[int]) -> ChainHash:
    """The name of a block's prefix: that of the block before, and its own token ids."""
    return hashlib.blake2b(previous + array("i", tokens).tobytes(), digest_size=16).digest()


class BlockPool:
    """The blocks of one tier. Ids are 0 … blocks - 1."""

    def __init__(self, blocks: int, block_tokens: int) -> None:
        if blocks < 1 or block_tokens < 1:
            raise ValueError(f"blocks={blocks}, block_tokens={block_tokens}: both must be positive")
        self.blocks = blocks
        self.block_tokens = block_tokens
        self._free = list(range(blocks - 1, -1, -1))
        self._references = [0] * blocks
        self._hash_of: dict[int, ChainHash] = {}
        self._block_of: dict[ChainHash, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()  # registered, referenced by nobody

    @property
    def free_blocks(self) -> int:
        """Blocks that `allocate` can give, cached prefixes nobody holds included."""
        return len(self._free) + len(self._idle)

    @property
    def used_blocks(self) -> int:
        """Blocks somebody holds."""
        return self.blocks - self.free_blocks

    def references(self, block: int) -> int:
        """How many holders a block has."""
        return self._references[block]

    def allocate(self, count: int) -> list[int]:
        """`count` blocks with one reference each; OutOfBlocksError changes nothing."""
        if count > self.free_blocks:
            raise OutOfBlocksError(
                f"{count} blocks wanted, {self.free_blocks} of {self.blocks} free"
            )
        taken = [self._take() for _ in range(count)]
        for block in taken:
            self._references[block] = 1
        return taken

    def _take(self) -> int:
        if self._free:
            return self._free.pop()
        block, _ = self._idle.popitem(last=False)
        del self._block_of[self._hash_of.pop(block)]
        return block

    def retain(self, blocks: Iterable[int]) -> None:
        """One more holder for each."""
        for block in blocks:
            if self._references[block] == 0:
                self._idle.pop(block)  # KeyError: retaining a block that is free
            self._references[block] += 1

    def release(self, blocks: Iterable[int]) -> None:
        """One holder fewer for each; at none the block is free, or findable where registered."""
        for block in blocks:
            if self._references[block] <= 0:
                raise ValueError(f"block {block} released more often than retained")
            self._references[block] -= 1
            if self._references[block] == 0:
                if block in self._hash_of:
                    self._idle[block] = None
                else:
                    self._free.append(block)

    def register(self, block: int, name: ChainHash) -> None:
        """The block is full, computed and from now on never written: others may share it."""
        if name not in self._block_of and block not in self._hash_of:
            self._block_of[name] = block
            self._hash_of[block] = name

    def match(self, names: Sequence[ChainHash]) -> list[int]:
        """The blocks of the longest known prefix, retained for the caller."""
        found = []
        for name in names:
            block = self._block_of.get(name)
            if block is None:
                break
            found.append(block)
        self.retain(found)
        return found
