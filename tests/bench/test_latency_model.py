"""What `bench/latency_model.py` writes, and the floor that it is held against."""

import pytest

import latency_model
from latency_floor import KINDS, LEAST_ALIKE, LOADS, mixed, scatter
from omniserve_agent.engine.profiling import Observation
from omniserve_agent.scheduling.latency import Work

LAYERS = 2


def seen(seconds, times=1, **work):
    return [Observation(Work(**work), seconds)] * times


def test_the_contract_names_stand_at_the_top():
    kinds = {
        "all": {
            "iterations": 7,
            "mean_accuracy": 0.9,
            "p90_accuracy": 0.8,
            "floor_mean_accuracy": 0.95,
            "floor_p90_accuracy": 0.85,
            "error_over_floor": 2.0,
            "median_ms": 3.0,
        },
    }
    assert latency_model.headline(kinds) == {
        "mean_accuracy": 0.9,
        "p90_accuracy": 0.8,
        "floor_mean_accuracy": 0.95,
        "floor_p90_accuracy": 0.85,
        "error_over_floor": 2.0,
        "iterations": 7,
    }


def test_every_kind_is_repeated():
    assert {load.kind for load in LOADS} == set(KINDS)


def test_only_identical_iterations_are_held_against_each_other():
    """Two row counts of different lengths scatter not at all; one of them does by itself."""
    calm = seen(0.1, LEAST_ALIKE, device_rows=1) + seen(0.2, LEAST_ALIKE, device_rows=8)
    assert scatter("decode", calm, LAYERS) == [1.0] * (2 * LEAST_ALIKE)
    loud = seen(0.1, LEAST_ALIKE, device_rows=1) + seen(0.2, 1, device_rows=1)
    assert scatter("decode", loud, LAYERS) == [1.0] * LEAST_ALIKE + [0.5]


def test_what_was_hardly_repeated_says_nothing():
    rare = seen(0.1, LEAST_ALIKE - 1, device_rows=1)
    assert scatter("decode", rare, LAYERS) == []


def test_kinds_are_told_apart_by_what_happened():
    joins = seen(0.1, LEAST_ALIKE, device_rows=1, joined_rows=[1.0, 0.0])
    more = seen(0.2, LEAST_ALIKE, device_rows=1, joined_rows=[1.0, 1.0])
    prompts = seen(0.3, LEAST_ALIKE, device_rows=9, device_pairs=45)
    waited = seen(0.4, LEAST_ALIKE, device_rows=1, joined_rows=[1.0, 0.0], waited=True)
    everything = [*joins, *more, *prompts, *waited]
    assert scatter("decode with joins", everything, LAYERS) == [1.0] * (2 * LEAST_ALIKE)
    assert scatter("prefill", everything, LAYERS) == [1.0] * LEAST_ALIKE
    assert scatter("decode", everything, LAYERS) == []


def test_the_overall_floor_has_kinds_as_often_as_the_judged_loads():
    found = {"decode": [0.9, 0.9], "prefill": [0.5], "decode with joins": []}
    mean, p90 = mixed(found, {"decode": 30, "prefill": 10, "decode with joins": 99})
    assert (mean, p90) == (pytest.approx(0.8), 0.5)
    mean, p90 = mixed(found, {"decode": 95, "prefill": 5})
    assert (mean, p90) == (pytest.approx(0.88), 0.9)


def test_each_kind_is_beside_its_own_floor():
    figures = {
        "all": {"iterations": 4, "mean_accuracy": 0.8, "p90_accuracy": 0.7},
        "decode": {"iterations": 3, "mean_accuracy": 0.9, "p90_accuracy": 0.8},
        "prefill": {"iterations": 1, "mean_accuracy": 0.7, "p90_accuracy": 0.6},
        "sweep": {"iterations": 1, "mean_accuracy": 0.1, "p90_accuracy": 0.1},
    }
    latency_model.beside_floors(figures, {"decode": [0.95] * 9, "prefill": [0.9] * 9})
    assert figures["decode"]["error_over_floor"] == pytest.approx(2.0)
    assert figures["prefill"]["error_over_floor"] == pytest.approx(3.0)
    assert figures["all"]["floor_mean_accuracy"] == pytest.approx((3 * 0.95 + 0.9) / 4)
    assert "floor_mean_accuracy" not in figures["sweep"]
