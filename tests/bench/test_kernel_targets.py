"""The kernel issue's targets from rows of kernel.json."""

from __future__ import annotations

import pytest

from kernel_targets import Row, of


def row(**changes: object) -> Row:
    usual = {"isa": "avx512", "group": 4, "q_len": 1, "head_size": 128, "kv_heads": 8}
    usual |= {"context": 2048, "rows": 11, "dtype": "bf16", "threads": 1, "mixed": False}
    usual |= {"gbps": 10.0, "mtokens_per_s": 2.0, "roof_fraction": 0.8}
    usual |= {"ratio_vllm": None, "ratio_torch": None, "ratio_neo_like": None}
    return usual | changes


def test_roof_fractions_by_shape_and_threads() -> None:
    rows = [
        row(),
        row(group=8, roof_fraction=0.65),
        row(group=8, context=512, roof_fraction=0.1),  # too short
        row(threads=2, roof_fraction=0.93),
        row(threads=2, head_size=256, roof_fraction=0.85),
        row(threads=2, q_len=4, roof_fraction=0.2),
        row(threads=2, isa="avx2", roof_fraction=0.55),
    ]
    found = of(rows)
    assert found["of the roof: one core, groups 1-4"]["least"] == 0.8
    assert found["of the roof: one core, groups 5-8"] == {
        "target": 0.6, "median": 0.65, "least": 0.65, "largest": 0.65, "shapes": 1,
    }  # fmt: skip
    assert found["of the roof: all cores, groups 1-8, head sizes 64 and 128"]["median"] == 0.93
    assert found["of the roof: all cores, group 16 or head size 256"]["median"] == 0.85
    assert found["of the roof: all cores, avx2"]["least"] == 0.55


def test_ratios_of_peers_count_where_they_ran() -> None:
    rows = [
        row(ratio_vllm=2.0, ratio_neo_like=4.0),
        row(group=1, ratio_vllm=1.2, ratio_neo_like=1.5),
        row(group=8, ratio_vllm=1.6),
    ]
    found = of(rows)
    assert (found["over vLLM"]["least"], found["over vLLM"]["median"]) == (1.2, 1.6)
    assert found["over NEO-like, groups from 4 on"]["least"] == 4.0


def test_pairs_are_rid_of_the_roofs_changes() -> None:
    slow = {"roof_fraction": 0.4, "gbps": 4.0}  # the roof was 10 then, 12.5 at the others
    rows = [row(), row(q_len=4, **slow), row(dtype="i8", mtokens_per_s=3.6, rows=22)]
    found = of(rows)
    assert found["time of 4 tokens a hop over 1 (at most)"]["median"] == pytest.approx(2.0)
    assert found["int8 over bf16 tokens/s"]["median"] == pytest.approx(1.8)


def test_nothing_measured_is_said() -> None:
    assert of([row(group=1)])["int8 over bf16 tokens/s"] == {"target": 1.7, "shapes": 0}
