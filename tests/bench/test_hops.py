"""A hop's times, not how long they are."""

from __future__ import annotations

import os

from hops import Hops, Times, figures
from omniserve_native import Workers


def test_one_item_is_taken_before_it_is_complete() -> None:
    with Workers(1, cores=sorted(os.sched_getaffinity(0))[-1:]) as workers:
        hops = Hops(workers, rows=1, kv_heads=1)
        for _ in range(3):
            times = hops.hop()
            assert 0 < times.taken < times.completed
            assert 0 < times.submitted <= times.completed
            assert times.busy > 0
        hops.close()


def test_many_rows_come_back_together() -> None:
    with Workers(1) as workers:
        hops = Hops(workers, rows=40, kv_heads=3)
        before = workers.stats().items
        hops.hop()
        assert workers.stats().items == before + 40 * 3
        hops.close()


def test_median_of_hops_and_range_of_rounds() -> None:
    rounds = [[Times(1, us * 1000, 1, 1) for us in some] for some in ((1, 2, 3), (2, 8, 9))]
    found = figures(rounds, one_item=True)
    assert (found["taken_us"], found["taken_us_range"]) == (2.5, [2.0, 8.0])
    assert "taken_us" not in figures(rounds, one_item=False)
