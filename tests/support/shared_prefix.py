"""Rows whose block tables begin alike, through an exchange, against float64. No torch: ISA paths
run in processes of their own, which should start fast."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from omniserve_native import Arena, ArenaConfig, DType, Exchange, ExchangeConfig, Workers
from support.kv_reference import (
    BLOCK,
    Case,
    Errors,
    Row,
    Setup,
    bound,
    compare,
    encode,
    lse_bound,
    make_row,
    poison,
)

SECOND_NS = 1_000_000_000
LAYER = 1


@dataclass(frozen=True)
class Family:
    """Rows (prior tokens, q_len) of `case`; `shared`: how many blocks at the start of each one's
    table are the first row's."""

    case: Case
    shared: tuple[int, ...]

    @property
    def blocks(self) -> list[int]:
        """Of every row's whole table."""
        return [-(-(prior + q_len) // BLOCK) for prior, q_len in self.case.rows]


@dataclass
class Offloaded:
    """A family's rows, each in a slot of an exchange."""

    family: Family
    workers: Workers
    setup: Setup = field(init=False)
    exchange: Exchange = field(init=False)
    slots: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        case = self.family.case
        total, rows = sum(self.family.blocks), len(case.rows)
        shape = case.kv_heads, case.head_size
        arena = Arena(ArenaConfig(2, *shape, total, rows + 1, total, case.dtype))
        poison(arena, LAYER)
        self.setup = Setup(case, arena)
        self._place_rows(np.random.default_rng(case.seed), total)
        sizes = rows, case.q_heads, 8, case.row_dtype, case.scale
        self.exchange = Exchange(ExchangeConfig(*sizes, host_residual=False), arena, self.workers)
        for row in self.setup.rows:
            self.slots.append(self.exchange.open_slot(row.sequence))
            self.exchange.begin(self.slots[-1], row.start, row.q_len)

    def _place_rows(self, random: np.random.Generator, total: int) -> None:
        case, free = self.family.case, random.permutation(total).tolist()
        first: list[int] = []
        shapes = zip(case.rows, self.family.blocks, self.family.shared, strict=True)
        for (prior, q_len), count, shared in shapes:
            table = [*first[:shared], *free[: count - shared]]
            free = free[count - shared :]
            first = first or table
            self._place(make_row(case, random, prior, q_len), table, shared * BLOCK)

    def _place(self, row: Row, table: list[int], common: int) -> None:
        """Its first `common` tokens are the first row's and there already."""
        arena, dtype = self.setup.arena, self.family.case.dtype
        for name in ("k", "v", "k_given", "v_given") if common else ():
            getattr(row, name)[:common] = getattr(self.setup.rows[0], name)[:common]
        row.sequence = arena.open_sequence()
        arena.set_blocks(row.sequence, 0, table)
        arena.truncate(row.sequence, common)
        k, v = (encode(g[common : row.start], dtype) for g in (row.k_given, row.v_given))
        sides = k.ctypes.data, v.ctypes.data
        arena.import_tokens(row.sequence, LAYER, common, row.start - common, *sides)
        self.setup.rows.append(row)

    def submit(self) -> None:
        """All rows in one call."""
        case, size = self.family.case, self.family.case.head_size
        q, k, v = (self.setup.packed(name) for name in "qkv")
        self.exchange.submit(
            LAYER, 0, np.array(self.slots, np.int32),
            q.ctypes.data, case.q_heads * size, k.ctypes.data, case.kv_heads * size,
            v.ctypes.data, case.kv_heads * size,
        )  # fmt: skip

    def errors(self) -> Errors:
        """Of all rows, once they have come back."""
        case = self.family.case
        o = np.zeros_like(self.setup.packed("q"))
        slots, positions = np.zeros(len(self.slots), np.int32), np.zeros(len(o), np.int64)
        count, _ = self.exchange.pick(
            LAYER, 0, len(o), 30 * SECOND_NS, slots, o.ctypes.data,
            case.q_heads * case.head_size, positions=positions.ctypes.data,
        )  # fmt: skip
        assert slots[:count].tolist() == self.slots
        rows = zip(self.slots, self.setup.rows, strict=True)
        lse = [self.exchange.lse(slot, row.q_len) for slot, row in rows]
        return compare(self.setup, o, np.concatenate(lse))

    def close(self) -> None:
        """Exchange first."""
        self.exchange.close()
        self.setup.arena.close()


def tokens_read(family: Family, workers: Workers) -> int:
    """Tokens whose KV is read for the family (of all kv heads together), all rows queued before a
    worker looks. Every answer is within the bounds."""
    case, offloaded = family.case, Offloaded(family, workers)
    workers.pause()
    before = workers.stats()
    offloaded.submit()
    workers.resume()
    errors = offloaded.errors()
    after = workers.stats()
    offloaded.close()
    assert errors.o <= bound(case), (errors, case)
    assert errors.lse <= lse_bound(case), (errors, case)
    assert after.items - before.items == len(case.rows) * case.kv_heads
    token_bytes = case.kv_heads * 2 * case.dtype.head_bytes(case.head_size)
    return (after.kv_bytes - before.kv_bytes) // token_bytes


def tokens_of(case: Case) -> int:
    """What the rows read one by one."""
    return sum(prior + q_len for prior, q_len in case.rows)


# Their own tokens begin in a block of their own (512), in the middle of one, and far behind.
ROWS = ((600, 1), (512, 1), (700, 1), (655, 1))
LEAST_BLOCKS_A_HEAD = 16  # of native/src/share.c


def alike(group: int, dtype: DType, size: int) -> Family:
    """Rows of the shortest prefix that is shared, and some tokens of their own."""
    blocks = LEAST_BLOCKS_A_HEAD * group
    rows = tuple((blocks * BLOCK + own, 1) for own in (88, 0, 188, 143))
    case = Case(rows, size, group=group, dtype=dtype, activations=DType.BF16, seed=group)
    return Family(case, (0, blocks, blocks, blocks))


FAMILIES = [
    alike(group, dtype, size)
    for dtype in (DType.BF16, DType.I8)
    for size, group in ((64, 1), (64, 3), (80, 4), (96, 5), (128, 6), (256, 2), (24, 4))
]


def main() -> None:
    """On the ISA path that OMNISERVE_ISA names; prints what was out of bounds."""
    exact = [
        replace(family, case=replace(family.case, dtype=DType.F32, activations=None))
        for family in FAMILIES[:3]
    ]
    with Workers(1, spin_ns=1000) as pool:
        for family in (*FAMILIES, *exact):
            try:
                tokens_read(family, pool)
            except AssertionError as error:
                print(error)
