"""int8 KV: what is stored, what comes back, and how far attention over it is from exact."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omniserve_native import BLOCK_TOKENS, Arena, ArenaConfig, AttendCall, DType, NativeError
from support.kv_reference import Case, attention, decode, encode, prepare, run_attend

HEADS, SIZE = 2, 24
RECORD = DType.I8.head_bytes(SIZE)


def make(dtype: DType = DType.I8, blocks: int = 6) -> tuple[Arena, int]:
    arena = Arena(ArenaConfig(2, HEADS, SIZE, blocks, 2, blocks, dtype))
    sequence = arena.open_sequence()
    arena.set_blocks(sequence, 0, np.random.default_rng(1).permutation(blocks))
    return arena, sequence


def appended(rows: np.ndarray, dtype: DType = DType.F32) -> tuple[np.ndarray, np.ndarray]:
    """The stored records of rows [tokens, HEADS, SIZE], and the floats that `read` gives."""
    arena, sequence = make()
    raw = encode(rows, dtype)
    at = raw.ctypes.data
    arena.append(sequence, 0, 0, len(rows), at, at, dtype=dtype)
    records = np.zeros((2, len(rows), HEADS, RECORD), np.uint8)
    arena.export_tokens(sequence, 0, 0, len(rows), *(side.ctypes.data for side in records))
    back = np.zeros((2, *rows.shape), np.float32)
    arena.read(sequence, 0, 0, len(rows), *(side.ctypes.data for side in back), DType.F32)
    arena.close()
    assert np.array_equal(records[0], records[1])
    assert np.array_equal(back[0], back[1], equal_nan=True)
    return records[0], back[0]


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 40),
    st.sampled_from([DType.F32, DType.BF16, DType.F16]),
    st.sampled_from([1e-20, 1e-3, 1.0, 1e4]),
    st.integers(0, 99),
)
def test_append_stores_what_the_reference_stores(
    tokens: int, dtype: DType, spread: float, seed: int
) -> None:
    values = np.random.default_rng(seed).standard_normal((tokens, HEADS, SIZE)) * spread
    rounded = decode(encode(values, dtype), dtype)
    records, back = appended(rounded, dtype)
    assert np.array_equal(records, encode(rounded, DType.I8))
    assert np.array_equal(back, decode(records, DType.I8).astype(np.float32))
    step = np.abs(rounded).max(axis=-1, keepdims=True) / 127 * (1 + 2**-7)
    assert (np.abs(back - rounded) <= step / 2 * (1 + 1e-5) + 1e-30).all()


def test_zeros_stay_zeros_and_the_largest_stays_in_range() -> None:
    rows = np.zeros((3, HEADS, SIZE))
    rows[1, :, 5] = 3e38
    rows[2, :, 7] = -1.0
    records, back = appended(rows)
    assert not back[0].any()
    assert records[0].tobytes() == bytes(HEADS * RECORD)
    assert back[1, 0, 5] == pytest.approx(3e38, rel=1e-2)
    assert back[2, 0, 7] == pytest.approx(-1.0, rel=1e-2)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", ["k", "v"])
def test_what_is_not_finite_is_not_hidden(bad: float, side: str) -> None:
    arena, sequence = make()
    random = np.random.default_rng(0)
    rows = {name: random.standard_normal((20, HEADS, SIZE)).astype(np.float32) for name in "kv"}
    rows[side][17, 0, 3] = bad
    arena.append(sequence, 0, 0, 20, *(rows[n].ctypes.data for n in "kv"), dtype=DType.F32)
    q = random.standard_normal((1, 2 * HEADS, SIZE)).astype(np.float32)
    o = np.zeros_like(q)
    call = AttendCall(arena, 2 * HEADS, DType.F32, 0.2, 1)
    call.set_segments(np.array([sequence]), np.array([1]), np.array([19]))
    call.set_strides(2 * HEADS * SIZE, HEADS * SIZE, HEADS * SIZE, 2 * HEADS * SIZE)
    call.run(0, q.ctypes.data, 0, 0, o.ctypes.data)
    assert np.isnan(o[0, :2]).all()  # the query heads of the bad kv head
    assert np.isfinite(o[0, 2:]).all()
    arena.close()


@pytest.mark.parametrize("other", [DType.F32, DType.BF16, DType.F16])
def test_copies_convert(other: DType) -> None:
    values = np.random.default_rng(2).standard_normal((40, HEADS, SIZE))
    exact, a = make(other)
    rows = encode(values, other)
    for layer in range(2):
        exact.import_tokens(a, layer, 0, 40, rows.ctypes.data, rows.ctypes.data)
    small, b = make()
    exact.copy_to(small, a, b, 0, 40)
    records = np.zeros((2, 40, HEADS, RECORD), np.uint8)
    small.export_tokens(b, 1, 0, 40, *(side.ctypes.data for side in records))
    assert np.array_equal(records[0], encode(decode(rows, other), DType.I8))
    assert np.array_equal(records[0], records[1])
    back, c = make(other)
    small.copy_to(back, b, c, 0, 40)
    again = np.zeros((2, *rows.shape), rows.dtype)
    back.export_tokens(c, 1, 0, 40, *(side.ctypes.data for side in again))
    assert np.array_equal(again[0], encode(decode(records[0], DType.I8), other))
    for arena in (exact, small, back):
        arena.close()


def test_int8_is_no_dtype_of_rows() -> None:
    arena, sequence = make()
    rows = np.zeros((1, HEADS, SIZE), np.float32)
    at = rows.ctypes.data
    with pytest.raises(NativeError, match="source_dtype is 3; it must lie between 0 and 2"):
        arena.append(sequence, 0, 0, 1, at, at)
    arena.append(sequence, 0, 0, 1, at, at, dtype=DType.F32)
    with pytest.raises(NativeError, match="dtype is 3; it must lie between 0 and 2"):
        arena.read(sequence, 0, 0, 1, at, at, DType.I8)
    with pytest.raises(NativeError, match="stride is 47; it must lie between 48"):
        arena.read(sequence, 0, 0, 1, at, at, DType.F32, stride=47)
    call = AttendCall(arena, HEADS, DType.I8, 0.2, 1)
    call.set_segments(np.array([sequence]), np.array([1]), np.array([0]))
    with pytest.raises(NativeError, match="dtype is 3"):
        call.run(0, at, 0, 0, at)
    arena.close()


def test_layout_names_the_scales() -> None:
    arena, _ = make()
    layout = arena.layout()
    assert layout.tile_bytes == 2 * 16 * RECORD
    assert "scales" in layout.v_order
    arena.close()


@pytest.mark.parametrize("magnitude", [0.0, 1e-4, 1.0, 30.0])
def test_scores_of_every_size(magnitude: float) -> None:
    """From all alike to one that takes all: 16-bit queries and probabilities."""
    case = Case(((200, 1), (63, 4), (1000, 2)), dtype=DType.I8, spread=magnitude**0.5, scale=0.125)
    assert run_attend(case).o < 5e-4


def error_of(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> float:
    """Largest error of the last len(q) tokens' attention over one kv head, at scale 1."""
    (queries, heads, size), tokens = q.shape, len(k)
    blocks = -(-tokens // BLOCK_TOKENS)
    arena = Arena(ArenaConfig(1, 1, size, blocks, 1, blocks, DType.I8))
    sequence = arena.open_sequence()
    arena.set_blocks(sequence, 0, range(blocks))
    raw = [encode(rows, DType.I8) for rows in (k, v)]
    arena.import_tokens(sequence, 0, 0, tokens, *(side.ctypes.data for side in raw))
    rows, o = encode(q, DType.F32), np.zeros(q.shape, np.float32)
    call = AttendCall(arena, heads, DType.F32, 1.0, 1)
    call.set_segments(np.array([sequence]), np.array([queries]), np.array([tokens - queries]))
    call.set_strides(heads * size, size, size, heads * size)
    call.run(0, rows.ctypes.data, 0, 0, o.ctypes.data)
    arena.close()
    right, _ = attention(q, *(decode(side, DType.I8) for side in raw), tokens - queries, 1.0)
    return float(np.abs(o - right).max())


@pytest.mark.parametrize(
    ("tokens", "nats", "sink"), [(2000, 12, 0), (8000, 10, 0), (8000, 10, 7990)]
)
def test_many_small_probabilities_beside_a_large_one_count(
    tokens: int, nats: float, sink: int
) -> None:
    """One token is e^nats times as probable as each other, whose V are alike."""
    size = 64
    k, v = np.zeros((tokens, 1, size)), np.ones((tokens, 1, size))
    k[sink], v[sink] = nats / size, -1.0
    # Without the others: 2.4e-2 and 0.53.
    assert error_of(np.ones((1, 2, size)), k, v) < 1e-3


@pytest.mark.parametrize("score", [-88.72, -300.0, 300.0])
def test_a_query_may_see_nothing_of_the_last_step(score: float) -> None:
    """Steps are of 64 tokens: the first two of four queries do not see token 64."""
    size = 64
    random = np.random.default_rng(0)
    v = random.standard_normal((66, 1, size))
    assert error_of(np.ones((4, 2, size)), np.full(v.shape, score / size), v) < 1e-3


def test_the_cases_are_not_what_was_given() -> None:
    row = prepare(Case(((40, 1),), dtype=DType.I8)).rows[0]
    assert 1e-3 < np.abs(row.k - row.k_given).max() < 0.05
