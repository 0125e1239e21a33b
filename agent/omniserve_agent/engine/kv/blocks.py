"""Blocks of one tier: reference counts, a free list, and prefixes found again by a hash chain.

A block holds `block_tokens` tokens over all layers. A full, computed block is *registered* under
the hash of its whole prefix; blocks nobody holds stay findable until they are needed (least
recently released first). Both tiers use the same chain, so a prefix has one name everywhere.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence

ChainHash = bytes
RUN_BLOCKS = 8  # a request's blocks lie side by side in runs of so many, while there is room


class OutOfBlocksError(Exception):
    """The tier has fewer free blocks than asked for."""


def chain_start(salt: str) -> ChainHash:
    """The hash before the first block: requests of different salt share nothing."""
    return hashlib.blake2b(salt.encode(), digest_size=16, person=b"omniserve-kv").digest()


def chain_next(previous: ChainHash, tokens: Sequence[int]) -> ChainHash:
    """The name of a block's prefix: that of the block before, and its own token ids."""
    return hashlib.blake2b(previous + array("i", tokens).tobytes(), digest_size=16).digest()


class FreeBlocks:
    """Which blocks are free, given out so that a request's blocks follow one another: reading them
    in order is up to a third faster than in random order. A new run starts in a stretch of
    RUN_BLOCKS that is free as a whole, so that there is room to go on behind it.
    """

    def __init__(self, blocks: int) -> None:
        self._free = bytearray(b"\1") * blocks
        self._left = [min(RUN_BLOCKS, blocks - at) for at in range(0, blocks, RUN_BLOCKS)]
        self._whole = dict.fromkeys(range(len(self._left)))  # stretches, in the order of use
        self._broken: dict[int, None] = {}  # stretches of which only a part is free
        self.count = blocks

    def _size(self, stretch: int) -> int:
        return min(RUN_BLOCKS, len(self._free) - stretch * RUN_BLOCKS)

    def take(self, after: int) -> int:
        """The block behind `after` if it is free, else the start of a new run."""
        block = after + 1
        if not (0 < block < len(self._free) and self._free[block]):
            stretch = next(iter(self._whole or self._broken))
            block = self._free.index(1, stretch * RUN_BLOCKS)
        self._free[block] = 0
        self.count -= 1
        self._counted(block // RUN_BLOCKS, -1)
        return block

    def put(self, block: int) -> None:
        """The block is free again."""
        self._free[block] = 1
        self.count += 1
        self._counted(block // RUN_BLOCKS, 1)

    def _counted(self, stretch: int, change: int) -> None:
        self._left[stretch] += change
        left = self._left[stretch]
        self._whole.pop(stretch, None)
        if left == self._size(stretch):
            self._broken.pop(stretch, None)
            self._whole[stretch] = None
        elif left:
            self._broken[stretch] = None
        else:
            self._broken.pop(stretch, None)


class DistinctBlocks:
    """Blocks of one pool that any of some holders has; each counts once."""

    def __init__(self) -> None:
        self._holders = Counter[int]()

    def __len__(self) -> int:
        return len(self._holders)

    def take(self, blocks: Iterable[int]) -> None:
        """A holder has these as well."""
        self._holders.update(blocks)

    def leave(self, blocks: Iterable[int]) -> None:
        """A holder has these no longer."""
        for block in blocks:
            self._holders[block] -= 1
            if not self._holders[block]:
                del self._holders[block]


class BlockPool:
    """The blocks of one tier. Ids are 0 … blocks - 1."""

    def __init__(self, blocks: int, block_tokens: int) -> None:
        if blocks < 1 or block_tokens < 1:
            raise ValueError(f"blocks={blocks}, block_tokens={block_tokens}: both must be positive")
        self.blocks = blocks
        self.block_tokens = block_tokens
        self._free = FreeBlocks(blocks)
        self._references = [0] * blocks
        self._hash_of: dict[int, ChainHash] = {}
        self._block_of: dict[ChainHash, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()  # registered, referenced by nobody

    @property
    def free_blocks(self) -> int:
        """Blocks that `allocate` can give, cached prefixes nobody holds included."""
        return self._free.count + len(self._idle)

    @property
    def used_blocks(self) -> int:
        """Blocks somebody holds."""
        return self.blocks - self.free_blocks

    def references(self, block: int) -> int:
        """How many holders a block has."""
        return self._references[block]

    def allocate(self, count: int, after: int = -1) -> list[int]:
        """`count` blocks with one reference each, behind block `after` where these are free.

        OutOfBlocksError changes nothing.
        """
        if count > self.free_blocks:
            raise OutOfBlocksError(
                f"{count} blocks wanted, {self.free_blocks} of {self.blocks} free"
            )
        taken = []
        for _ in range(count):
            after = self._take(after)
            self._references[after] = 1
            taken.append(after)
        return taken

    def _take(self, after: int) -> int:
        if self._free.count:
            return self._free.take(after)
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
                    self._free.put(block)

    def register(self, block: int, name: ChainHash) -> None:
        """The block is full, computed and from now on never written: others may share it."""
        if name not in self._block_of and block not in self._hash_of:
            self._block_of[name] = block
            self._hash_of[block] = name

    def match(self, names: Iterable[ChainHash]) -> list[int]:
        """The blocks of the longest known prefix, retained for the caller."""
        found = self._known(names)
        self.retain(found)
        return found

    def look_up(self, names: Iterable[ChainHash]) -> tuple[int, int]:
        """How many blocks `match` would find, and how many of these somebody holds; nobody retains
        them, and no name behind the first unknown one is asked for."""
        found = self._known(names)
        return len(found), sum([self._references[block] > 0 for block in found])

    def _known(self, names: Iterable[ChainHash]) -> list[int]:
        found = []
        for name in names:
            block = self._block_of.get(name)
            if block is None:
                break
            found.append(block)
        return found
