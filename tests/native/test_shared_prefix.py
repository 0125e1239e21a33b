"""Offloaded rows whose block tables begin alike: their common KV is read once, and nobody's answer
changes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from omniserve_native import DType, Workers
from support.isa_paths import assert_silent
from support.kv_reference import BLOCK, Case, bound
from support.shared_prefix import (
    FAMILIES,
    LEAST_BLOCKS_A_HEAD,
    ROWS,
    Family,
    Offloaded,
    tokens_of,
    tokens_read,
)


@pytest.fixture
def worker() -> Iterator[Workers]:
    """One: it takes the rows in order, so what is shared does not depend on timing."""
    with Workers(1, spin_ns=1000) as pool:
        yield pool


@pytest.mark.parametrize("dtype", list(DType))
def test_shared_blocks_are_read_once(worker: Workers, dtype: DType) -> None:
    case = Case(ROWS, group=2, dtype=dtype)
    assert tokens_read(Family(case, (0, 32, 32, 32)), worker) == tokens_of(case) - 3 * 512


def test_only_whole_blocks_before_everybodys_own_tokens_are_shared(worker: Workers) -> None:
    case = Case(((531, 1), (519, 1)), group=2)  # 33 and 32 full blocks
    assert tokens_read(Family(case, (0, 32)), worker) == tokens_of(case) - 32 * 16
    case = Case(((531, 1), (531, 1)), group=2)
    assert tokens_read(Family(case, (0, 33)), worker) == tokens_of(case) - 33 * 16


def test_tables_that_share_nothing_are_read_one_by_one(worker: Workers) -> None:
    case = Case(ROWS, group=2)
    assert tokens_read(Family(case, (0, 0, 0, 0)), worker) == tokens_of(case)


@pytest.mark.parametrize("group", [1, 2])
def test_a_short_common_run_is_not_worth_it(worker: Workers, group: int) -> None:
    case, least = Case(ROWS, group=group), LEAST_BLOCKS_A_HEAD * group
    assert tokens_read(Family(case, (0, *(least - 1,) * 3)), worker) == tokens_of(case)
    saved = 3 * least * BLOCK
    assert tokens_read(Family(case, (0, *(least,) * 3)), worker) == tokens_of(case) - saved


def test_two_families_and_strangers(worker: Workers) -> None:
    """Rows 0, 2 and 4 have 20 blocks in common, rows 0 and 2 some more; the others nothing."""
    case = Case((*ROWS, (400, 1)), group=1)
    assert tokens_read(Family(case, (0, 0, 32, 0, 20)), worker) == tokens_of(case) - 2 * 320


def test_the_run_that_saves_most_is_taken(worker: Workers) -> None:
    """One row over 36 blocks, or two over 17 or 20."""
    case = Case(ROWS[::2] + ROWS[3:], group=1)
    assert tokens_read(Family(case, (0, 36, 17)), worker) == tokens_of(case) - 36 * 16
    assert tokens_read(Family(case, (0, 36, 20)), worker) == tokens_of(case) - 2 * 20 * 16


def test_rows_with_drafts_share_too(worker: Workers) -> None:
    case = Case(((600, 3), (520, 2), (512, 1)), group=2)
    assert tokens_read(Family(case, (0, 32, 32)), worker) == tokens_of(case) - 2 * 512


def test_queries_that_arithmetic_would_bind_are_left_alone(worker: Workers) -> None:
    many = Case(((600, 8), (600, 8)), group=2)  # 32 queries
    assert tokens_read(Family(many, (0, 32)), worker) == tokens_of(many)
    wide = Case(((2000, 1), (2000, 1)), group=7)  # 14
    assert tokens_read(Family(wide, (0, 120)), worker) == tokens_of(wide)


def test_a_long_queue_is_grouped_by_what_pays(worker: Workers) -> None:
    """Six rows of group 2 are 12 queries: twenty rows are read four times."""
    case = Case(((560, 1),) * 20, group=2)
    assert tokens_read(Family(case, (0, *(35,) * 19)), worker) == tokens_of(case) - 16 * 560


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_every_shape_is_within_the_bounds(worker: Workers, family: Family) -> None:
    assert tokens_read(family, worker) < tokens_of(family.case)


def test_several_workers_agree_with_the_reference(workers: Workers) -> None:
    """What is shared depends on who comes first; the answers do not."""
    for seed in range(20):
        case = Case(ROWS, kv_heads=3, group=1, seed=seed)
        assert tokens_read(Family(case, (0, 32, 20, 32)), workers) <= tokens_of(case)


def test_a_partner_that_was_closed_comes_back_stale(worker: Workers) -> None:
    case = Case(ROWS[:3], group=2)
    offloaded = Offloaded(Family(case, (0, 32, 32)), worker)
    worker.pause()
    offloaded.submit()
    assert offloaded.exchange.close_slot(offloaded.slots[1]) is False
    worker.resume()
    reaped: list[int] = []
    while not reaped:
        reaped = offloaded.exchange.reap()
    assert reaped == [offloaded.slots[1]]
    del offloaded.slots[1], offloaded.setup.rows[1]
    assert offloaded.errors().o <= bound(case)
    offloaded.close()


@pytest.mark.parametrize("isa", ["avx512_bf16", "avx512_vnni", "avx512", "avx2", "portable"])
def test_every_isa_path_keeps_the_bounds(isa: str) -> None:
    assert_silent(isa, "shared_prefix")
