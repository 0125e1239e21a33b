"""Attention against float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omniserve_native import AttendCall, DType, NativeError, Workers, isa_name
from support.isa_paths import assert_silent, available_isas, in_process
from support.kv_reference import Case, Errors, attention, bound, lse_bound, run_attend


@pytest.mark.parametrize("isa", ["avx512_bf16", "avx512_vnni", "avx512", "avx2", "portable"])
def test_every_isa_path_keeps_the_bounds(isa: str) -> None:
    assert_silent(isa, "kv_reference")


def test_an_unknown_isa_is_refused_with_the_choices() -> None:
    answer = in_process("sse9", "import omniserve_native as n; n.isa_name()")
    assert 'OMNISERVE_ISA is "sse9"; this machine has:' in answer.stderr
    assert "portable" in answer.stderr


def test_the_best_isa_is_taken() -> None:
    answer = in_process("", "import omniserve_native as n; print(n.isa_name())")
    assert answer.stdout.strip() == available_isas()[0]


def check(case: Case, workers: Workers | None = None) -> None:
    errors = run_attend(case, workers)
    assert errors.o <= bound(case), (isa_name(), errors, case)
    assert errors.lse <= lse_bound(case), (isa_name(), errors, case)


cases = st.builds(
    Case,
    rows=st.lists(st.tuples(st.integers(0, 300), st.integers(1, 20)), min_size=1, max_size=4).map(
        tuple
    ),
    head_size=st.integers(2, 32).map(lambda eighths: eighths * 8),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 16),
    dtype=st.sampled_from(DType),
    activations=st.none() | st.sampled_from(DType),
    scale=st.sampled_from([0.05, 0.125, 1.0]),
    spread=st.sampled_from([0.1, 1.0]),
    seed=st.integers(0, 1000),
)


@settings(max_examples=60, deadline=None)
@given(cases)
def test_random_shapes(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("dtype", DType)
def test_helpers_split_the_kv_of_a_lone_row(dtype: DType, workers: Workers) -> None:
    for prior in (511, 512, 513, 1500):
        for q_len in (1, 8):
            case = Case(((prior, q_len),), kv_heads=1, dtype=dtype, seed=prior)
            check(case, workers)
    check(Case(tuple((n, 1) for n in range(0, 200, 7)), dtype=dtype), workers)
    check(Case(((40, 90), (0, 300)), dtype=dtype), workers)
    long_among_short = *((40, 1),) * 4, (3000, 1), *((17, 1),) * 4
    check(Case(long_among_short, kv_heads=1, dtype=dtype), workers)


@pytest.mark.parametrize("seed", [9, 11, 15])
def test_long_sums_of_large_terms_keep_what_float_is_promised(seed: int) -> None:
    """In one sum over the head these were off by up to 1.4e-5."""
    check(Case(((300, 20), (250, 20)), 232, kv_heads=3, group=16, scale=1.0, seed=seed))


def test_huge_scores_stay_exact() -> None:
    case = Case(((200, 1), (63, 4)), integers=True, spread=15.0, scale=1e3)
    check(case)


def test_a_row_of_one_token_returns_its_value() -> None:
    case = Case(((0, 1),), dtype=DType.BF16)
    assert run_attend(case) == Errors(pytest.approx(0, abs=0.0), pytest.approx(0, abs=1e-5))


def test_the_reference_notices_a_wrong_answer() -> None:
    random = np.random.default_rng(0)
    k, v = random.standard_normal((2, 40, 1, 16))
    q = random.standard_normal((1, 2, 16))
    right, _ = attention(q, k, v, 39, 0.25)
    late, _ = attention(q, k, v, 38, 0.25)
    assert np.abs(right - late).max() > 1e-3


def test_rows_may_share_prefix_blocks(arena, workers) -> None:
    random = np.random.default_rng(1)
    prefix_k, prefix_v = random.standard_normal((2, 32, 2, 16)).astype(np.float32)
    own_k, own_v = random.standard_normal((2, 2, 2, 16)).astype(np.float32)
    q = random.standard_normal((2, 4, 16)).astype(np.float32)
    first, second = arena.open_sequence(), arena.open_sequence()
    arena.set_blocks(first, 0, [5, 9, 1])
    arena.import_tokens(first, 0, 0, 32, prefix_k.ctypes.data, prefix_v.ctypes.data)
    arena.set_blocks(second, 0, [5, 9, 2])
    arena.truncate(second, 32)
    o = np.zeros_like(q)
    call = AttendCall(arena, 4, DType.F32, 0.25, 2, workers)
    call.set_segments(np.array([first, second]), np.array([1, 1]), np.array([32, 32]))
    call.set_strides(64, 32, 32, 64)
    call.run(0, *(array.ctypes.data for array in (q, own_k, own_v, o)))
    for i in range(2):
        k, v = (
            np.concatenate(pair)
            for pair in ((prefix_k, own_k[i : i + 1]), (prefix_v, own_v[i : i + 1]))
        )
        right, _ = attention(q[i : i + 1].astype(float), k, v, 32, 0.25)
        assert np.abs(o[i] - right[0]).max() < 1e-5


def test_attending_without_k_reads_what_is_there(arena) -> None:
    random = np.random.default_rng(2)
    k, v = random.standard_normal((2, 30, 2, 16)).astype(np.float32)
    q = random.standard_normal((3, 4, 16)).astype(np.float32)
    sequence = arena.open_sequence()
    arena.set_blocks(sequence, 0, [7, 2])
    arena.import_tokens(sequence, 1, 0, 30, k.ctypes.data, v.ctypes.data)
    o = np.zeros_like(q)
    call = AttendCall(arena, 4, DType.F32, 0.25, 1)
    call.set_segments(np.array([sequence]), np.array([3]), np.array([27]))
    call.set_strides(64, 32, 32, 64)
    call.run(1, q.ctypes.data, 0, 0, o.ctypes.data)
    right, _ = attention(q.astype(float), k, v, 27, 0.25)
    assert np.abs(o - right).max() < 1e-5
    call.set_segments(np.array([sequence]), np.array([3]), np.array([28]))
    with pytest.raises(NativeError, match="end by token 30"):
        call.run(1, q.ctypes.data, 0, 0, o.ctypes.data)


@pytest.mark.parametrize("isa", ["avx512_bf16", "avx512_vnni", "avx512", "avx2", "portable"])
def test_no_token_depends_on_a_later_one(isa: str) -> None:
    assert_silent(isa, "masked_tokens")
