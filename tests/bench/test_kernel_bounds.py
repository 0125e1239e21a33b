"""Rows of kernel.json against memory's and arithmetic's roofs."""

from __future__ import annotations

import pytest

from kernel_bounds import Turn, of


def turns(own: float, memory: float, floats: float) -> list[Turn]:
    ways = {"roof 1 streams": memory * 0.7, "roof 4 streams": memory}
    return [{"own": own, "floats": floats, **ways} for _ in range(3)]


def test_where_memory_binds() -> None:
    found = of(turns(own=9.0, memory=10.0, floats=80.0), macs_per_byte=2.0, unit="floats")
    assert found["roof_gbps"] == found["bound_gbps"] == 10.0
    assert found["roof_way"] == "4 streams"
    assert found["roof_fraction"] == found["bound_fraction"] == pytest.approx(0.9)
    assert found["fma_fraction"] == pytest.approx(18 / 80)


def test_where_arithmetic_binds() -> None:
    found = of(turns(own=9.0, memory=20.0, floats=80.0), macs_per_byte=8.0, unit="floats")
    assert found["arithmetic_gbps"] == found["bound_gbps"] == 10.0
    assert found["fma_fraction"] == found["bound_fraction"] == pytest.approx(0.9)
    assert found["roof_fraction"] == pytest.approx(0.45)


def test_dot_products_allow_more_than_floats() -> None:
    three = [turn | {"pairs": 160.0} for turn in turns(own=15.0, memory=40.0, floats=80.0)]
    found = of(three, macs_per_byte=8.0, unit="pairs")
    assert (found["arithmetic_gbps"], found["bound_gbps"]) == (20.0, 20.0)
    assert found["fma_fraction"] == pytest.approx(1.5)
    assert found["bound_fraction"] == pytest.approx(0.75)


def test_a_disturbed_turn_of_multiply_adds_forbids_nothing() -> None:
    three = turns(own=9.0, memory=20.0, floats=80.0)
    three[0]["floats"] = three[1]["floats"] = 8.0
    assert of(three, macs_per_byte=8.0, unit="floats")["arithmetic_gbps"] == 10.0


def test_one_lucky_turn_of_a_slower_way_is_no_roof() -> None:
    three = turns(own=9.0, memory=10.0, floats=80.0)
    three[1]["roof 1 streams"] = 30.0
    assert of(three, macs_per_byte=1.0, unit="floats")["roof_gbps"] == 10.0
