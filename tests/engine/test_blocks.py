"""Block pools against a plain model of them, and names of prefixes."""

from collections import Counter
from itertools import pairwise, takewhile

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from omniserve_agent.engine.kv import tables
from omniserve_agent.engine.kv.blocks import (
    RUN_BLOCKS,
    BlockPool,
    OutOfBlocksError,
    chain_next,
    chain_start,
)
from omniserve_agent.engine.kv.tables import KvTier, PrefixNames
from support.fake_executor import FakeStore

BLOCKS = 6


class Pool(RuleBasedStateMachine):
    """Holders take, share, register and give back blocks in any order."""

    def __init__(self):
        super().__init__()
        self.pool = BlockPool(BLOCKS, 4)
        self.holders: list[list[int]] = []
        self.names: dict[bytes, int] = {}  # first block registered under a name

    @rule(count=st.integers(0, BLOCKS + 1))
    def allocate(self, count):
        free = self.pool.free_blocks
        if count > free:
            with pytest.raises(OutOfBlocksError, match=f"{count} blocks wanted, {free} of 6 free"):
                self.pool.allocate(count)
            return
        held = {block for blocks in self.holders for block in blocks}
        taken = self.pool.allocate(count)
        assert len(set(taken)) == count
        assert not held & set(taken)
        self.names = {n: b for n, b in self.names.items() if b not in taken}
        self.holders.append(taken)

    @precondition(lambda self: self.holders)
    @rule(which=st.integers(0, 99))
    def release(self, which):
        self.pool.release(self.holders.pop(which % len(self.holders)))

    @precondition(lambda self: self.holders)
    @rule(which=st.integers(0, 99))
    def share(self, which):
        blocks = self.holders[which % len(self.holders)]
        self.pool.retain(blocks)
        self.holders.append(list(blocks))

    @precondition(lambda self: any(self.holders))
    @rule(which=st.integers(0, 99), name=st.sampled_from([b"a", b"b", b"c"]))
    def register(self, which, name):
        held = [block for blocks in self.holders for block in blocks]
        block = held[which % len(held)]
        self.pool.register(block, name)
        if name not in self.names and block not in self.names.values():
            self.names[name] = block

    @rule(names=st.lists(st.sampled_from([b"a", b"b", b"c"]), max_size=3))
    def match(self, names):
        expected = []
        for name in names:
            if name not in self.names:
                break
            expected.append(self.names[name])
        assert self.pool.match(names) == expected
        self.holders.append(expected)

    @rule(names=st.lists(st.sampled_from([b"a", b"b", b"c"]), max_size=3))
    def look_up(self, names):
        known = list(takewhile(self.names.__contains__, names))
        held = {block for blocks in self.holders for block in blocks}
        shared = sum(self.names[name] in held for name in known)
        assert self.pool.look_up(iter(names)) == (len(known), shared)

    @invariant()
    def counts_agree(self):
        held = Counter(block for blocks in self.holders for block in blocks)
        assert [self.pool.references(b) for b in range(BLOCKS)] == [held[b] for b in range(BLOCKS)]
        assert self.pool.used_blocks == len(held)
        assert self.pool.free_blocks == BLOCKS - len(held)


TestPool = Pool.TestCase
TestPool.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)


def test_releasing_too_often_is_an_error():
    pool = BlockPool(2, 4)
    blocks = pool.allocate(1)
    pool.release(blocks)
    with pytest.raises(ValueError, match="block 0 released more often than retained"):
        pool.release(blocks)


@pytest.mark.parametrize("sizes", [(0, 4), (4, 0)])
def test_sizes_must_be_positive(sizes):
    with pytest.raises(ValueError, match="both must be positive"):
        BlockPool(*sizes)


def cached_prefix(blocks, tokens):
    """A tier whose pool remembers `tokens` of a request that is gone, and their names."""
    tier, names = KvTier(BlockPool(blocks, 4), FakeStore(blocks)), PrefixNames("s", 4)
    table = tier.open(())
    tier.grow(table, len(tokens))
    tier.register(table, names.upto(tokens, len(tokens) // 4))
    tier.close(table)
    return tier, names


def test_a_prefix_is_forgotten_from_its_end():
    tokens = list(range(16))
    tier, names = cached_prefix(5, tokens)
    tier.pool.release(tier.pool.allocate(3))  # one was free: two of the four are overwritten
    assert tier.open(names.upto(tokens, 4)).shared_blocks == 2


def test_growing_takes_no_block_that_is_being_shared():
    tokens = list(range(16))
    tier, names = cached_prefix(5, tokens)
    table = tier.open(names.upto(tokens, 4))
    tier.grow(table, 20)
    assert sorted(table.blocks) == [0, 1, 2, 3, 4]
    with pytest.raises(OutOfBlocksError):
        tier.grow(table, 21)
    assert len(table.blocks) == 5


def test_names_depend_on_salt_order_and_everything_before():
    tokens = [5, 6, 7, 8] * 2
    one, other = PrefixNames("a", 4).upto(tokens, 2), PrefixNames("b", 4).upto(tokens, 2)
    assert len({*one, *other}) == 4
    assert PrefixNames("a", 4).upto([6, 5, 7, 8], 1)[0] != one[0]
    assert chain_start("a") != chain_start("b")


def test_names_grow_with_the_tokens():
    names, tokens = PrefixNames("a", 4), [1, 2, 3, 4]
    first = list(names.upto(tokens, 1))
    tokens += [5, 6, 7, 8]
    assert names.upto(tokens, 2)[:1] == first
    assert list(names.upto(tokens, 2)) == list(PrefixNames("a", 4).upto(tokens, 2))


def test_names_are_hashed_as_far_as_somebody_asks(monkeypatch):
    tokens, hashed = list(range(16)), []

    def counted(previous, block):
        hashed.append(block)
        return chain_next(previous, block)

    monkeypatch.setattr(tables, "chain_next", counted)
    names = PrefixNames("a", 4)
    pool = BlockPool(4, 4)
    assert pool.look_up(names.each(tokens, 4)) == (0, 0)
    assert len(hashed) == 1
    assert list(names.each(tokens, 4)) == names.upto(tokens, 4)
    assert list(names.each(tokens, 2)) == names.upto(tokens, 2)
    assert len(hashed) == 4


def test_requests_that_grow_in_turns_keep_their_blocks_in_runs() -> None:
    pool = BlockPool(64, 16)
    tables = [pool.allocate(3), pool.allocate(2)]
    for _ in range(20):
        for table in tables:
            table += pool.allocate(1, table[-1])
    for table in tables:
        jumps = sum(b != a + 1 for a, b in pairwise(table))
        assert jumps <= len(table) // RUN_BLOCKS
        assert len(set(table)) == len(table)


def test_the_last_free_blocks_are_found_wherever_they_are() -> None:
    pool = BlockPool(19, 16)
    held = pool.allocate(19)
    assert sorted(held) == list(range(19))
    for block in (17, 3, 11):
        pool.release([block])
    assert sorted(pool.allocate(3, 3)) == [3, 11, 17]
    with pytest.raises(OutOfBlocksError):
        pool.allocate(1)
