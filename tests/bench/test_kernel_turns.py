"""One shape's turns: right results of every kind of rows, peers that can do them, other paths."""

from __future__ import annotations

import contextlib
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

import pytest
import torch

import kernel_paths
from kernel_paths import Answering, start_others
from kernel_peers import Memory, NeoLike, NeoProblem, TorchProblem, causal
from kernel_problem import Problem
from kernel_shapes import Lengths, Shape
from kernel_turns import in_time, rows_over_twin, seen_by
from omniserve_native import DType, isa_name

CORES = sorted(os.sched_getaffinity(0))[:1]
SHAPES = [
    Shape(3, 64, 2, context=100, most_rows=2),
    Shape(3, 64, 2, context=100, q_len=4, most_rows=2),
    Shape(2, 64, 1, context=1000, most_rows=5, lengths=Lengths.MIXED),
    Shape(2, 64, 1, context=1000, most_rows=3, lengths=Lengths.ONE_LONG),
]
INT8 = Shape(4, 64, 1, context=300, most_rows=1, dtype=DType.I8)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_results_are_right_whatever_the_lengths(shape: Shape) -> None:
    problem = Problem(shape, {1: None}, seed=0)
    assert problem.gbps(1) > 0
    assert problem.max_error() < 2e-3
    assert abs(problem.o[-1].astype(int)).max() > 0  # of the last call's last row too
    problem.arena.close()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_peers_can_do_them(shape: Shape) -> None:
    rows = len(shape.contexts)
    assert TorchProblem(Memory(), shape).gbps(CORES, rows) > 0
    if shape.q_len > 1:
        return
    neo = NeoLike()
    with ThreadPoolExecutor(1) as pool:
        assert NeoProblem(neo, shape).gbps(pool, rows) > 0
        assert pool.submit(lambda: sys.float_info.min / 2).result() > 0
    neo.close()
    assert sys.float_info.min / 2 > 0  # the library leaves subnormal numbers alone


def test_the_last_queries_do_not_see_behind_themselves() -> None:
    assert (causal(2, 4) == 0).tolist() == [[True, True, True, False], [True] * 4]
    assert causal(2, 4).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("shape", "asked"),
    [
        (Shape(4, 128, 8), 6),
        (Shape(4, 128, 1, context=32768, most_rows=1), 3),
        (Shape(4, 128, 2, context=4096, most_rows=256, lengths=Lengths.MIXED), 256),
    ],
)
def test_slow_peers_get_fewer_rows_but_of_different_lengths_all(shape: Shape, asked: int) -> None:
    seen: list[int] = []

    def call(rows: int) -> float:
        seen.append(rows)
        return 0.9  # GB/s: 54 MB in the time

    in_time(call, shape, threads=2)()
    assert seen[-1] == asked


def test_another_paths_row_has_its_own_speed_and_not_this_ones_twin() -> None:
    class Other:
        isa, unit = "avx512", "floats"

    turn = {"own": 9.0, "twin": 8.0, "floats": 80.0, "vllm": 3.0, "roof 1": 10.0}
    turn |= {"avx512 own": 7.0, "avx512 floats": 70.0, "avx512_bf16 own": 8.5}
    (seen,) = seen_by(Other(), [turn])
    assert (seen["own"], seen["floats"], seen["vllm"]) == (7.0, 70.0, 3.0)
    assert "twin" not in seen


def test_hops_of_int8_over_those_of_bf16_are_not_bytes() -> None:
    same_bytes = [{"own": 10.0, "twin": 10.0}]
    assert rows_over_twin(INT8, same_bytes) == pytest.approx(128 / 66)
    assert rows_over_twin(SHAPES[0], same_bytes) is None
    assert rows_over_twin(INT8, [{"own": 10.0}]) is None


def test_another_path_answers_for_a_shape() -> None:
    with contextlib.ExitStack() as closing:
        side = Answering(CORES, closing)
        fields = asdict(INT8)
        assert "unit" in side.answer({"shape": fields, "seed": 0})
        assert side.answer({"threads": 1})["gbps"] > 0
        assert side.answer({"threads": 1, "multiply": "floats"})["gmacs"] > 0
        assert side.answer({"error of": "it"})["max_error"] < 0.05


def test_a_process_for_every_other_path(monkeypatch: pytest.MonkeyPatch) -> None:
    other = "portable" if isa_name() != "portable" else "none"
    monkeypatch.setattr(kernel_paths, "PATHS", (isa_name(), other, "no such path"))
    with contextlib.ExitStack() as closing:
        found = start_others(CORES, 0, closing)
        assert [path.isa for path in found] == [other] * (other == "portable")
        for path in found:
            path.prepare(SHAPES[2])
            assert path.gbps(1) > 0
            assert path.max_error() < 2e-3
