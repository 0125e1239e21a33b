"""What `bench/latency_model.py` writes."""

import latency_model


def test_the_contract_names_stand_at_the_top():
    kinds = {
        "all": {"iterations": 7, "mean_accuracy": 0.9, "p90_accuracy": 0.8},
        "floor": {"iterations": 9, "mean_accuracy": 0.95, "p90_accuracy": 0.85},
    }
    assert latency_model.headline(kinds) == {
        "mean_accuracy": 0.9,
        "p90_accuracy": 0.8,
        "floor_mean_accuracy": 0.95,
        "floor_p90_accuracy": 0.85,
        "iterations": 7,
    }
