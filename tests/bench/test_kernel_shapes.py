"""The order of bench-kernel's shapes."""

from __future__ import annotations

from collections import Counter

import pytest

from kernel_shapes import (
    GROUPS,
    HEAD_SIZES,
    KV_BYTES,
    LEAST_MIXED,
    MIXED_ROWS,
    Lengths,
    Shape,
    grid,
    short_grid,
)
from omniserve_native import DType


def spread(counts: Counter[int], wanted: tuple[int, ...]) -> int:
    found = [counts[value] for value in wanted]
    return max(found) - min(found)


def crossed() -> list[Shape]:
    plain = [s for s in grid() if s.comparable and s.q_len == 1 and s.context == 2048]
    return [shape for shape in plain if shape.kv_heads == 8]


def test_every_group_meets_every_head_size_once() -> None:
    pairs = [(shape.group, shape.head_size) for shape in crossed()]
    assert sorted(pairs) == sorted((group, size) for group in GROUPS for size in HEAD_SIZES)


@pytest.mark.parametrize("count", range(1, len(GROUPS) * len(HEAD_SIZES)))
def test_any_beginning_has_groups_and_head_sizes_evenly(count: int) -> None:
    beginning = crossed()[:count]
    assert spread(Counter(shape.group for shape in beginning), GROUPS) <= 1
    assert spread(Counter(shape.head_size for shape in beginning), HEAD_SIZES) <= 1


def test_any_beginning_has_its_share_of_what_peers_can_and_cannot_do() -> None:
    shapes = grid()
    share = sum(shape.comparable for shape in shapes) / len(shapes)
    for count in range(1, len(shapes)):
        assert abs(sum(s.comparable for s in shapes[:count]) - share * count) <= 2


def test_what_peers_cannot_do_begins_with_different_kinds() -> None:
    first = [shape for shape in grid() if not shape.comparable][:8]
    assert {shape.group for shape in first} >= {1, 4, 8}
    assert {shape.head_size for shape in first} >= {64, 128}
    assert {shape.dtype for shape in first} == {DType.F16, DType.I8, DType.F32}


def test_no_shape_comes_twice_and_all_paths_measure_a_part_of_the_grid() -> None:
    assert len(set(grid())) == len(grid())
    assert set(short_grid()) <= set(grid())


def test_some_shapes_have_fewer_items_than_split_kv_asks_for() -> None:
    """Two threads split below four items (plan_splits of native/src/attend.c)."""
    split = [s for s in grid() if s.rows * s.kv_heads < 4 and s.lengths is Lengths.ALIKE]
    assert {shape.kv_heads for shape in split} == {1, 2}
    assert {shape.rows for shape in split} == {1, 2}
    assert {shape.context for shape in split} == {8192, 32768}
    assert {shape.dtype for shape in split} == {DType.BF16, DType.I8}


def test_mixed_rows_are_as_many_as_they_say_and_of_every_length() -> None:
    (mixed,) = (shape for shape in grid() if shape.lengths is Lengths.MIXED)
    assert (mixed.rows, len(mixed.contexts)) == (MIXED_ROWS, MIXED_ROWS)
    assert (min(mixed.contexts), max(mixed.contexts)) == (LEAST_MIXED, mixed.context)
    doublings = Counter((n // LEAST_MIXED).bit_length() for n in mixed.contexts if n < 4096)
    assert max(doublings.values()) - min(doublings.values()) <= 2
    assert mixed.contexts != sorted(mixed.contexts)
    assert mixed.total_bytes < 1.5 * KV_BYTES


def test_one_long_row_among_short_ones() -> None:
    (shape,) = (shape for shape in grid() if shape.lengths is Lengths.ONE_LONG)
    assert sorted(shape.call_contexts)[-2:] == [512, 32768]


def test_few_rows_are_read_in_several_calls() -> None:
    shape = Shape(4, 128, 1, context=32768, most_rows=1)
    assert (shape.rows, len(shape.contexts)) == (1, shape.calls)
    assert KV_BYTES / 2 < shape.total_bytes <= KV_BYTES
    assert Shape(4, 128, 8).calls == 1
    assert shape.bytes_of_first(3) == 3 * shape.bytes_of(32768)


def test_twins_differ_in_one_thing() -> None:
    assert Shape(4, 128, 8, dtype=DType.I8, q_len=4).twin == Shape(4, 128, 8, q_len=4)
    assert Shape(4, 128, 8, dtype=DType.F16, q_len=4).twin == Shape(4, 128, 8, dtype=DType.F16)
    assert Shape(4, 128, 8).twin is None


def test_multiply_adds_per_byte() -> None:
    assert Shape(8, 128, 8).macs_per_byte == 4
    assert Shape(2, 128, 8, q_len=2, dtype=DType.F32).macs_per_byte == 1
    assert Shape(8, 128, 8, dtype=DType.I8).macs_per_byte == pytest.approx(8 * 128 / 130)
