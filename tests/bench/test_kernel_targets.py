"""The targets of host attention, from kernel.json."""

from __future__ import annotations

from typing import Any

import pytest

from kernel_targets import Row, of

GROUPS_1_TO_8 = "of the roof: all cores, groups 1-8, head sizes 64 and 128"


def row(**changes: Any) -> Row:
    usual = {"isa": "avx512", "group": 4, "q_len": 1, "head_size": 128, "kv_heads": 8}
    usual |= {"context": 2048, "rows": 11, "dtype": "bf16", "threads": 1, "lengths": "alike"}
    usual |= {"gbps": 8.0, "mtokens_per_s": 2.0, "roof_gbps": 10.0, "roof_fraction": 0.8}
    usual |= {"arithmetic_gbps": 30.0, "bound_gbps": 10.0, "bound_fraction": 0.8}
    usual |= {"ratio_vllm": None, "ratio_torch": None, "ratio_neo_like": None, "max_error": 1e-4}
    usual |= {"rows_over_twin": None}
    return usual | changes


def targets(rows: list[Row], added_us: float = 9.0, taken_us: float = 4.0) -> dict[str, Any]:
    joins = {"added_us_per_layer": added_us, "allowed_us_per_layer": 11.7}
    hops = [
        {"rows": 1, "spinning": True, "taken_us": taken_us},
        {"rows": 400, "spinning": True, "completed_us": 900.0},
        {"rows": 1, "spinning": False, "taken_us": 60.0},
    ]
    return of({"rows": rows, "joins": joins, "hops": hops})


def test_roof_fractions_by_shape_and_threads() -> None:
    rows = [
        row(),
        row(group=8, roof_fraction=0.65),
        row(group=8, context=512, roof_fraction=0.1),  # too short
        row(threads=2, roof_fraction=0.93),
        row(threads=2, head_size=256, roof_fraction=0.85),
        row(threads=2, group=16, roof_fraction=0.7),
        row(threads=2, q_len=4, roof_fraction=0.2),
        row(threads=2, isa="avx2", roof_fraction=0.55),
        row(threads=2, isa="avx2", context=128, roof_fraction=0.1),
    ]
    found = targets(rows)
    assert found["of the roof: one core, groups 1-4"]["least"] == 0.8
    assert found["of the roof: one core, groups 5-8"] == {
        "target": 0.6, "at_most": False, "by": "every", "shapes": 1, "forbidden": 0, "holds": True,
        "missed": 0, "median": 0.65, "least": 0.65, "largest": 0.65,
    }  # fmt: skip
    assert found[GROUPS_1_TO_8]["median"] == 0.93
    assert found["of the roof: all cores, groups 1-8, head size 256"]["holds"]
    assert not found["of the roof: all cores, group 16, head sizes 64 and 128"]["holds"]
    assert found["of the roof: all cores, group 16, head size 256"]["holds"] is None
    assert found["of the roof: all cores, avx2"]["least"] == 0.55


def test_what_arithmetic_forbids_is_counted_and_does_not_decide() -> None:
    bound = {"arithmetic_gbps": 7.0, "bound_gbps": 7.0}
    rows = [row(threads=2, roof_fraction=0.92), row(threads=2, group=8, roof_fraction=0.6, **bound)]
    found = targets(rows)[GROUPS_1_TO_8]
    assert (found["shapes"], found["forbidden"], found["holds"]) == (2, 1, True)
    assert found["least"] == 0.6


def test_ratios_of_peers_count_where_they_ran() -> None:
    rows = [
        row(ratio_vllm=2.0, ratio_neo_like=4.0),
        row(group=1, ratio_vllm=1.2, ratio_neo_like=1.5),
        row(group=8, ratio_vllm=1.6),
    ]
    found = targets(rows)
    assert (found["over vLLM"]["least"], found["over vLLM"]["holds"]) == (1.2, True)
    assert (found["over vLLM, median"]["median"], found["over vLLM, median"]["holds"]) == (
        1.6,
        True,
    )
    assert found["over vLLM, median"]["missed"] == 1
    assert found["over NEO-like, groups from 4 on"]["least"] == 4.0


def test_rows_of_several_tokens_and_lengths_count_against_vllm_and_not_against_the_roof() -> None:
    rows = [
        row(threads=2, roof_fraction=0.92),
        row(threads=2, roof_fraction=0.3, q_len=4, ratio_vllm=0.9),
        row(threads=2, roof_fraction=0.3, lengths="mixed", ratio_vllm=1.4),
    ]
    found = targets(rows)
    assert (found[GROUPS_1_TO_8]["shapes"], found["over vLLM"]["shapes"]) == (1, 2)
    assert (found["over vLLM"]["missed"], found["over vLLM, median"]["missed"]) == (1, 2)


def test_a_peer_too_near_to_the_bound_is_excused_for_who_is_there_too() -> None:
    near = row(ratio_vllm=1.3, bound_fraction=0.95)
    far = row(group=1, ratio_vllm=1.1, bound_fraction=0.8)
    found = targets([near, far])["over vLLM, median"]
    assert (found["shapes"], found["forbidden"], found["holds"]) == (2, 1, False)


def test_pairs_are_of_the_same_turns() -> None:
    rows = [row(), row(q_len=4, rows_over_twin=0.5), row(dtype="i8", rows_over_twin=1.8)]
    rows += [row(dtype="i8", rows_over_twin=1.6), row(dtype="i8", context=512, rows_over_twin=1.0)]
    found = targets(rows)
    assert found["time of 4 tokens a hop over 1"]["median"] == pytest.approx(2.0)
    int8 = found["int8 over bf16 tokens/s"]
    assert (int8["shapes"], int8["missed"], int8["holds"]) == (2, 1, False)
    assert int8["largest"] == pytest.approx(1.8)


def test_pairs_do_not_decide_where_memory_does_not_bind() -> None:
    found = targets([row(q_len=4, rows_over_twin=0.4, arithmetic_gbps=9.0)])
    four = found["time of 4 tokens a hop over 1"]
    assert (four["shapes"], four["forbidden"], four["missed"]) == (1, 1, 0)
    assert four["holds"] is None


def test_joins_pickup_and_error() -> None:
    found = targets([row(), row(dtype="f32", max_error=2e-5)], added_us=12.0, taken_us=4.9)
    assert not found["joins, us a layer"]["holds"]
    pickup = found["pickup by a spinning worker, us"]
    assert (pickup["shapes"], pickup["largest"], pickup["holds"]) == (1, 4.9, True)
    assert found["error, bf16"]["holds"]
    assert not found["error, f32"]["holds"]


def test_nothing_measured_is_said() -> None:
    found = targets([row(group=1)])["int8 over bf16 tokens/s"]
    assert (found["target"], found["shapes"], found["holds"]) == (1.7, 0, None)
