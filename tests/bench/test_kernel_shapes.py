"""The order of bench-kernel's shapes."""

from __future__ import annotations

from collections import Counter

import pytest

from kernel_shapes import GROUPS, HEAD_SIZES, Shape, grid
from omniserve_native import DType


def spread(counts: Counter[int], wanted: tuple[int, ...]) -> int:
    found = [counts[value] for value in wanted]
    return max(found) - min(found)


def crossed() -> list[Shape]:
    return [s for s in grid() if s.comparable and s.context == 2048 and s.kv_heads == 8]


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
        assert abs(sum(s.comparable for s in shapes[:count]) - share * count) <= 1.5


def test_what_peers_cannot_do_begins_with_different_kinds() -> None:
    first = [shape for shape in grid() if not shape.comparable][:8]
    assert {shape.group for shape in first} >= {1, 4, 8}
    assert {shape.head_size for shape in first} == set(HEAD_SIZES)
    assert {shape.dtype for shape in first} == {DType.BF16, DType.F16, DType.I8, DType.F32}


def test_multiply_adds_per_byte() -> None:
    assert Shape(8, 128, 8).macs_per_byte == 4
    assert Shape(2, 128, 8, q_len=2, dtype=DType.F32).macs_per_byte == 1
    assert Shape(8, 128, 8, dtype=DType.I8).macs_per_byte == pytest.approx(8 * 128 / 130)
