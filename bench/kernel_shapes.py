"""The shapes of `make bench-kernel`, in an order of which every beginning is a fair sample."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from operator import itemgetter

from omniserve_native import DType

KV_BYTES = 192 << 20  # of one shape: its cache lines do not survive a turn of the roof's buffers
MIXED_ROWS = 256
GROUPS = (1, 3, 4, 5, 7, 8, 16)
HEAD_SIZES = (64, 96, 128, 256)


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
    mixed: bool = False  # row i has about (i % 8 + 1) / 8 of the context

    @property
    def bytes_per_row(self) -> int:
        """KV bytes that the longest row reads."""
        return self.bytes_of(self.context)

    def bytes_of(self, context: int) -> int:
        """KV bytes that a row reads, its own tokens and int8's scales included."""
        tokens = context + self.q_len
        return tokens * self.kv_heads * 2 * self.dtype.head_bytes(self.head_size)

    @property
    def contexts(self) -> list[int]:
        """Of every row."""
        eighths = [(i % 8 + 1) if self.mixed else 8 for i in range(self.rows)]
        return [self.context * n // 8 for n in eighths]

    @property
    def total_bytes(self) -> int:
        """Of one call."""
        return sum(self.bytes_of(context) for context in self.contexts)

    @property
    def macs_per_byte(self) -> float:
        """Multiply-adds per KV byte: 2 * group * q_len * head_size a token and kv head."""
        return self.group * self.q_len * self.head_size / self.dtype.head_bytes(self.head_size)

    @property
    def row_dtype(self) -> DType:
        """Of q, k, v and o."""
        return DType.BF16 if self.dtype is DType.I8 else self.dtype

    @property
    def rows(self) -> int:
        """As many as make KV_BYTES, at most `most_rows`."""
        return min(self.most_rows, max(1, KV_BYTES // self.bytes_per_row))

    @property
    def comparable(self) -> bool:
        """Whether the peers can do it: decode of equal rows in bf16."""
        return self.dtype is DType.BF16 and self.q_len == 1 and not self.mixed


def grid() -> list[Shape]:
    """Every group with every head size at context 2048 in bf16, and every other dimension of the
    issue around some of them."""
    crossed = [Shape(group, size, 8) for group in GROUPS for size in HEAD_SIZES]
    lengths = [Shape(4, 128, 8, context=n) for n in (128, 512, 8192, 32768)]
    lengths += [Shape(4, 128, 8, context=8192, most_rows=n) for n in (1, 4)]
    lengths += [Shape(3, 64, 3)]  # SmolLM2
    return interleaved(evenly(crossed), evenly(lengths), evenly(without_peers()))


def without_peers() -> list[Shape]:
    """What the peers cannot do."""
    shapes = [Shape(g, 128, 8, q_len=n) for g in (1, 3, 4, 8) for n in (2, 4, 8)]
    shapes += [Shape(g, size, 8, q_len=4) for g, size in ((1, 64), (5, 96), (1, 256), (7, 64))]
    shapes += [Shape(3, 64, 3, q_len=4)]
    shapes += [Shape(4, 128, 2, context=1024, most_rows=MIXED_ROWS, mixed=True)]
    shapes += [Shape(g, 128, 8, dtype=kind) for kind in (DType.F16, DType.F32) for g in (1, 4, 8)]
    shapes += [Shape(g, size, 8, dtype=DType.I8) for g in (1, 4, 8) for size in (64, 128)]
    rest = (3, 96), (5, 64), (7, 128), (16, 64), (16, 256), (1, 256)
    shapes += [Shape(g, size, 8, dtype=DType.I8) for g, size in rest]
    shapes += [Shape(4, 128, 8, dtype=kind, q_len=4) for kind in (DType.F16, DType.I8)]
    return shapes


def short_grid() -> list[Shape]:
    """What the other paths and --quick measure."""
    kinds = DType.BF16, DType.I8
    shapes = [Shape(group, 128, 8, dtype=kind) for kind in kinds for group in (1, 4, 8)]
    return [*shapes, Shape(4, 128, 8, q_len=4), Shape(4, 128, 8, dtype=DType.F16)]


def evenly(shapes: Iterable[Shape]) -> list[Shape]:
    """Next is always the shape whose group, head size, q_len and dtype have come up least."""
    left, ordered, seen = list(shapes), list[Shape](), Counter[tuple[str, object]]()
    while left:
        chosen = min(left, key=lambda shape: sum(seen[what] for what in _traits(shape)))
        left.remove(chosen)
        ordered.append(chosen)
        seen.update(_traits(chosen))
    return ordered


def _traits(shape: Shape) -> list[tuple[str, object]]:
    names = "group", "head_size", "q_len", "dtype"
    return [(name, getattr(shape, name)) for name in names]


def interleaved(*parts: list[Shape]) -> list[Shape]:
    """The parts' shapes in their order, of each as large a share as of the others at any place."""
    places = [((i + 0.5) / len(part), shape) for part in parts for i, shape in enumerate(part)]
    return [shape for _, shape in sorted(places, key=itemgetter(0))]
