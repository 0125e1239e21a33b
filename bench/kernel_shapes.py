"""The shapes of `make bench-kernel`, in an order of which every beginning is a fair sample."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from operator import itemgetter

from omniserve_native import DType

KV_BYTES = 192 << 20  # of one shape: its cache lines do not survive a turn of the roof's buffers
MIXED_ROWS, LEAST_MIXED = 256, 64  # rows, tokens
SHORT_ROWS, SHORT = 63, 512  # beside one long row
MOST_CALLS = 64
GROUPS = (1, 3, 4, 5, 7, 8, 16)
HEAD_SIZES = (64, 96, 128, 256)


class Lengths(StrEnum):
    """Of a call's rows."""

    ALIKE = "alike"  # all have the context
    MIXED = "mixed"  # from LEAST_MIXED to the context, as many in any doubling, in random order
    ONE_LONG = "one long"  # the first has the context, the others SHORT tokens


@dataclass(frozen=True)
class Shape:
    """One row of the table; `kv_heads` as in the models that have this group and head size."""

    group: int
    head_size: int
    kv_heads: int
    dtype: DType = DType.BF16
    context: int = 2048
    q_len: int = 1
    most_rows: int = 1 << 20
    lengths: Lengths = Lengths.ALIKE

    def bytes_of(self, context: int) -> int:
        """KV bytes that a row reads, its own tokens and int8's scales included."""
        tokens = context + self.q_len
        return tokens * self.kv_heads * 2 * self.dtype.head_bytes(self.head_size)

    @property
    def rows(self) -> int:
        """Of a call: as many as make KV_BYTES, at most `most_rows`, which is all of them where
        lengths differ."""
        if self.lengths is not Lengths.ALIKE:
            return self.most_rows
        return min(self.most_rows, max(1, KV_BYTES // self.bytes_of(self.context)))

    @cached_property
    def call_contexts(self) -> list[int]:
        """Of every row of a call."""
        if self.lengths is Lengths.ALIKE:
            return [self.context] * self.rows
        if self.lengths is Lengths.ONE_LONG:
            return [self.context] + [SHORT] * (self.rows - 1)
        doublings = self.context / LEAST_MIXED
        found = [round(LEAST_MIXED * doublings ** (i / (self.rows - 1))) for i in range(self.rows)]
        return random.Random(0).sample(found, self.rows)

    @property
    def calls(self) -> int:
        """One after the other over different rows: what little a few rows are would be measured by
        nothing but the clock, and again from the caches."""
        fitting = KV_BYTES // sum(map(self.bytes_of, self.call_contexts))
        return max(1, min(MOST_CALLS, fitting))

    @property
    def contexts(self) -> list[int]:
        """Of every row of all calls."""
        return self.call_contexts * self.calls

    def bytes_of_first(self, rows: int) -> int:
        """KV bytes that so many rows read, from the first one on."""
        return sum(map(self.bytes_of, self.contexts[:rows]))

    @property
    def total_bytes(self) -> int:
        """Of all calls."""
        return self.bytes_of_first(len(self.contexts))

    @property
    def macs_per_byte(self) -> float:
        """Multiply-adds per KV byte: 2 * group * q_len * head_size a token and kv head."""
        return self.group * self.q_len * self.head_size / self.dtype.head_bytes(self.head_size)

    @property
    def row_dtype(self) -> DType:
        """Of q, k, v and o."""
        return DType.BF16 if self.dtype is DType.I8 else self.dtype

    @property
    def comparable(self) -> bool:
        """Whether peers take turns with it."""
        return self.dtype is DType.BF16

    @property
    def twin(self) -> Shape | None:
        """The kernel's own shape that it takes turns with: of int8 bf16, of several tokens a hop
        one."""
        if self.dtype is DType.I8:
            return replace(self, dtype=DType.BF16)
        return replace(self, q_len=1) if self.q_len > 1 else None


def grid() -> list[Shape]:
    """Every group with every head size at context 2048 in bf16, and every other dimension around
    some of them."""
    crossed = [Shape(group, size, 8) for group in GROUPS for size in HEAD_SIZES]
    parts = crossed, [*lengths(), *few_rows()], several_tokens(), other_dtypes()
    return interleaved(*map(evenly, parts))


def lengths() -> list[Shape]:
    """Contexts, alike and not."""
    shapes = [Shape(4, 128, 8, context=n) for n in (128, 512, 8192, 32768)]
    shapes += [Shape(8, 128, 8, context=n) for n in (512, 8192)]
    shapes += [Shape(1, 64, 8, context=512), Shape(1, 128, 8, context=8192)]
    shapes += [Shape(7, 64, 2, context=32768)]  # Qwen2.5-0.5B
    shapes += [Shape(3, 64, 3, context=n) for n in (512, 2048)]  # SmolLM2
    shapes += [Shape(4, 128, 2, context=4096, most_rows=MIXED_ROWS, lengths=Lengths.MIXED)]
    one_long = Shape(4, 128, 2, context=32768, most_rows=1 + SHORT_ROWS, lengths=Lengths.ONE_LONG)
    return [*shapes, one_long]


def few_rows() -> list[Shape]:
    """Long ones: where rows times kv heads are fewer than twice the threads, KV is split."""
    shapes = [Shape(4, 128, 8, context=8192, most_rows=n) for n in (1, 4)]
    split = (8, 128, 1, 8192, 1), (7, 64, 2, 8192, 1), (4, 128, 1, 32768, 1), (4, 128, 2, 32768, 1)
    for group, size, kv_heads, context, rows in (*split, (8, 128, 1, 32768, 2)):
        shapes.append(Shape(group, size, kv_heads, context=context, most_rows=rows))
    return shapes


def several_tokens() -> list[Shape]:
    """Tokens a hop."""
    shapes = [Shape(g, 128, 8, q_len=n) for g in (1, 3, 4, 8) for n in (2, 4, 8)]
    shapes += [Shape(g, size, 8, q_len=4) for g, size in ((1, 64), (5, 96), (1, 256), (7, 64))]
    return [*shapes, Shape(3, 64, 3, q_len=4)]


def other_dtypes() -> list[Shape]:
    """Of KV; no peer takes turns with these."""
    shapes = [Shape(g, 128, 8, dtype=kind) for kind in (DType.F16, DType.F32) for g in (1, 4, 8)]
    shapes += [Shape(g, size, 8, dtype=DType.I8) for g in (1, 4, 8) for size in (64, 128)]
    rest = (3, 96), (5, 64), (7, 128), (16, 64), (16, 256), (1, 256)
    shapes += [Shape(g, size, 8, dtype=DType.I8) for g, size in rest]
    shapes += [Shape(4, 128, 8, dtype=DType.I8, context=n) for n in (512, 8192)]
    shapes += [Shape(8, 64, 8, dtype=DType.I8, context=8192)]
    shapes += [Shape(4, 128, 2, dtype=DType.I8, context=32768, most_rows=1)]  # split
    shapes += [Shape(4, 128, 8, dtype=DType.F16, context=n) for n in (512, 8192)]
    return shapes + [Shape(4, 128, 8, dtype=kind, q_len=4) for kind in (DType.F16, DType.I8)]


def short_grid() -> list[Shape]:
    """What every path measures, and --quick; a part of the grid."""
    kinds = DType.BF16, DType.I8
    shapes = [Shape(group, 128, 8, dtype=kind) for kind in kinds for group in (1, 4, 8)]
    return [*shapes, Shape(4, 128, 8, q_len=4), Shape(4, 128, 8, dtype=DType.F16)]


def evenly(shapes: Iterable[Shape]) -> list[Shape]:
    """Next is always the shape whose group, head size, context, q_len and dtype have come up
    least."""
    left, ordered, seen = list(shapes), list[Shape](), Counter[tuple[str, object]]()
    while left:
        chosen = min(left, key=lambda shape: sum(seen[what] for what in _traits(shape)))
        left.remove(chosen)
        ordered.append(chosen)
        seen.update(_traits(chosen))
    return ordered


def _traits(shape: Shape) -> list[tuple[str, object]]:
    names = "group", "head_size", "context", "q_len", "dtype"
    return [(name, getattr(shape, name)) for name in names]


def interleaved(*parts: list[Shape]) -> list[Shape]:
    """The parts' shapes in their order, of each as large a share as of the others at any place."""
    places = [((i + 0.5) / len(part), shape) for part in parts for i, shape in enumerate(part)]
    return [shape for _, shape in sorted(places, key=itemgetter(0))]
