"""Blocks, sequences, bytes in and out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omniserve_native import Arena, ArenaConfig, AttendCall, DType, NativeError, Status, Workers


def random_bytes(count: int, arena: Arena, seed: int) -> tuple[np.ndarray, np.ndarray]:
    config = arena.config
    shape = count, config.kv_heads * config.dtype.head_bytes(config.head_size)
    random = np.random.default_rng(seed)
    return tuple(random.integers(0, 256, shape).astype(np.uint8) for _ in "kv")


def exported(arena: Arena, sequence: int, layer: int, start: int, count: int):
    width = arena.config.kv_heads * arena.config.dtype.head_bytes(arena.config.head_size)
    k, v = np.zeros((2, count, width), np.uint8)
    arena.export_tokens(sequence, layer, start, count, k.ctypes.data, v.ctypes.data)
    return k, v


def make(dtype: DType, head_size: int = 24, blocks: int = 8) -> tuple[Arena, int]:
    arena = Arena(ArenaConfig(2, 3, head_size, blocks, 4, blocks, dtype))
    sequence = arena.open_sequence()
    arena.set_blocks(sequence, 0, np.random.default_rng(0).permutation(blocks))
    return arena, sequence


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(DType), st.integers(0, 40), st.integers(0, 60), st.integers(0, 9))
def test_export_gives_the_imported_bytes(dtype: DType, start: int, count: int, seed: int) -> None:
    arena, sequence = make(dtype)
    first, rest = random_bytes(start, arena, seed), random_bytes(count, arena, seed + 1)
    for layer in range(2):
        arena.import_tokens(sequence, layer, 0, start, *(a.ctypes.data for a in first))
        arena.import_tokens(sequence, layer, start, count, *(a.ctypes.data for a in rest))
    for layer in range(2):
        for given_bytes, at in ((first, 0), (rest, start)):
            back = exported(arena, sequence, layer, at, len(given_bytes[0]))
            assert all(np.array_equal(a, b) for a, b in zip(given_bytes, back, strict=True))
    assert arena.length(sequence) == start + count
    arena.close()


SOURCES = (DType.F32, DType.F16, DType.BF16)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(DType),
    st.sampled_from(SOURCES),
    st.sampled_from([16, 24, 64, 80, 128]),
    st.integers(0, 20),
    st.integers(0, 40),
    st.integers(0, 7),
)
def test_many_tokens_at_once_lie_as_one_by_one(
    dtype: DType, source: DType, head_size: int, start: int, count: int, gap: int
) -> None:
    """Rows with NaNs and infinities among them, appended at once and token by token, then exported
    at once and token by token: the same bytes every way."""
    stride = 3 * head_size + gap
    bits = np.random.default_rng(count).integers(0, 256, (2, 60, stride * source.bytes))
    k, v = bits.astype(np.uint8)
    outcomes = []
    for step in (60, 1):
        arena, sequence = make(dtype, head_size)
        for first, end in ((0, start), (start, start + count)):
            for at in range(first, end, step):
                some = min(step, end - at)
                rows = k[at].ctypes.data, v[at].ctypes.data
                arena.append(sequence, 1, at, some, *rows, stride=stride, dtype=source)
        ends = range(start, start + count)
        parts = [exported(arena, sequence, 1, at, 1) for at in ends]
        outcomes.append(exported(arena, sequence, 1, start, count))
        outcomes.append([np.concatenate([kv[side] for kv in parts] or [[]]) for side in range(2)])
        arena.close()
    for other in outcomes[1:]:
        assert all(
            np.array_equal(a.ravel(), np.ravel(b)) for a, b in zip(outcomes[0], other, strict=True)
        )


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(DType), st.integers(1, 100), st.data())
def test_copies_between_arenas(dtype: DType, tokens: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, tokens))
    source, a = make(dtype)
    target, b = make(dtype)
    k, v = random_bytes(tokens, source, 5)
    for layer in range(2):
        source.import_tokens(a, layer, 0, tokens, k.ctypes.data, v.ctypes.data)
    source.copy_to(target, a, b, 0, start)
    source.copy_to(target, a, b, start, tokens - start)
    for layer in range(2):
        back = exported(target, b, layer, 0, tokens)
        assert np.array_equal(back[0], k)
        assert np.array_equal(back[1], v)
    source.close()
    target.close()


def test_append_converts_to_nearest_even() -> None:
    arena, sequence = make(DType.BF16, head_size=16)
    ties = np.array([1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, 3.0], np.float32)
    rows = np.tile(ties, 3 * 16 // 4)[None]
    arena.append(sequence, 0, 0, 1, rows.ctypes.data, rows.ctypes.data, stride=48, dtype=DType.F32)
    k, _ = exported(arena, sequence, 0, 0, 1)
    values = (k.view(np.uint16).astype(np.uint32) << 16).view(np.float32)[0]
    assert values[:4].tolist() == [1.0, 1 + 2**-6, -1.0, 3.0]
    arena.close()


def halves_arena() -> tuple[Arena, int]:
    """fp16, one head of 256: room for 256 tokens, as many numbers as there are."""
    arena = Arena(ArenaConfig(1, 1, 256, 16, 1, 16, DType.F16))
    sequence = arena.open_sequence()
    arena.set_blocks(sequence, 0, range(16))
    return arena, sequence


def test_every_fp16_number_is_read_as_what_it_is() -> None:
    arena, sequence = halves_arena()
    halves = np.arange(65536, dtype=np.uint16).view(np.float16)
    arena.import_tokens(sequence, 0, 0, 256, halves.ctypes.data, halves.ctypes.data)
    k, v = np.zeros((2, 65536), np.float32)
    where = k.ctypes.data, v.ctypes.data
    arena.read(sequence, 0, 0, 256, *where, stride=256, dtype=DType.F32)
    assert np.array_equal(k, halves.astype(np.float32), equal_nan=True)
    assert np.array_equal(k, v, equal_nan=True)
    arena.close()


def test_append_rounds_to_fp16_as_ieee_754_says() -> None:
    """Ties, numbers that become subnormal or infinite, and random ones of every size."""
    arena, sequence = halves_arena()
    random = np.random.default_rng(3)
    rows = np.ldexp(random.uniform(-2, 2, 65536), random.integers(-28, 18, 65536))
    ties = np.arange(0x7BFF, dtype=np.uint16).view(np.float16).astype(np.float32)
    rows[: len(ties) - 1] = (ties[1:] + ties[:-1]) / 2
    rows[-3:] = np.inf, -np.inf, 65519.99
    rows = rows.astype(np.float32)
    at = rows.ctypes.data
    arena.append(sequence, 0, 0, 256, at, at, stride=256, dtype=DType.F32)
    with np.errstate(over="ignore"):
        right = rows.astype(np.float16).view(np.uint16)
    for side in exported(arena, sequence, 0, 0, 256):
        assert np.array_equal(side.view(np.uint16).ravel(), right)
    arena.close()


def test_references(arena: Arena) -> None:
    sequence = arena.open_sequence()
    arena.retain_sequence(sequence)
    assert arena.release_sequence(sequence) == 1
    assert arena.length(sequence) == 0
    assert arena.release_sequence(sequence) == 0
    with pytest.raises(NativeError, match=f"seq is {sequence}; it must be an open sequence"):
        arena.length(sequence)
    assert arena.open_sequence() == sequence


def test_all_sequences_open(arena: Arena) -> None:
    for _ in range(8):
        arena.open_sequence()
    with pytest.raises(NativeError, match="all 8 sequences are open") as caught:
        arena.open_sequence()
    assert caught.value.code is Status.EFULL


def test_prefault_keeps_what_is_there(workers: Workers) -> None:
    arena, sequence = make(DType.F16, blocks=4)
    k, v = random_bytes(50, arena, 2)
    arena.import_tokens(sequence, 1, 0, 50, k.ctypes.data, v.ctypes.data)
    arena.prefault()
    arena.prefault(workers)
    assert np.array_equal(exported(arena, sequence, 1, 0, 50)[0], k)
    arena.close()


def test_layout_tells_the_byte_order() -> None:
    arena, _ = make(DType.BF16)
    layout = arena.layout()
    assert (layout.block_tokens, layout.dtype, layout.isa) == (16, DType.BF16, "any")
    assert layout.tile_bytes == 2 * 16 * 24 * 2
    assert arena.config.bytes >= 2 * 8 * 3 * layout.tile_bytes
    arena.close()


@pytest.mark.parametrize(
    ("dtype", "orders"),
    [
        (DType.F32, ("dim,token", "token,dim")),
        (DType.F16, ("dim,token", "token,dim")),
        (DType.BF16, ("dim/2,token,2", "token/2,dim,2")),
    ],
)
def test_bf16_alone_lies_in_pairs(dtype: DType, orders: tuple[str, str]) -> None:
    arena, _ = make(dtype)
    layout = arena.layout()
    assert (layout.k_order, layout.v_order) == orders
    arena.close()


BAD_CONFIGS = [
    ({"head_size": 20}, "head_size is 20; it must be a multiple of 8"),
    ({"head_size": 264}, "head_size is 264; it must lie between 16 and 256"),
    ({"layers": 0}, "layers is 0"),
    ({"kv_heads": -1}, "kv_heads is -1"),
    ({"blocks": 0}, "blocks is 0"),
    ({"blocks": 2**31 - 1, "layers": 1024, "kv_heads": 1024}, "can never be mapped"),
    ({"max_sequences": 0}, "max_sequences is 0"),
    ({"dtype": 4}, "dtype is 4; it must lie between 0 and 3"),
]


@pytest.mark.parametrize(("change", "message"), BAD_CONFIGS)
def test_bad_shapes_are_named(change: dict[str, int], message: str) -> None:
    good = {"layers": 1, "kv_heads": 1, "head_size": 64, "blocks": 1, "max_sequences": 1,
            "max_blocks_per_sequence": 1, "dtype": DType.F32}  # fmt: skip
    with pytest.raises(NativeError, match=message):
        Arena(ArenaConfig(**(good | change)))


def test_memory_that_is_not_there_is_refused() -> None:
    config = ArenaConfig(100, 100, 256, 2_000_000, 1, 1, DType.F32)  # 650 TB
    with pytest.raises(NativeError, match="could not map") as caught:
        Arena(config)
    assert caught.value.code is Status.ENOMEM


def test_bad_arguments_are_named(arena: Arena) -> None:
    sequence = arena.open_sequence()
    rows = np.zeros((40, 32), np.float32)
    at = rows.ctypes.data
    for call, message in [
        (lambda: arena.set_blocks(sequence, 1, [0]), "first is 1; it must lie between 0 and 0"),
        (lambda: arena.set_blocks(sequence, 0, [0, 64]), r"blocks\[1\] is 64"),
        (lambda: arena.set_blocks(sequence, 0, range(17)), "count is 17"),
        (lambda: arena.import_tokens(sequence, 2, 0, 1, at, at), "layer is 2"),
        (lambda: arena.import_tokens(sequence, 0, 0, 1, at, at), "count is 1"),
        (lambda: arena.import_tiles(8, 0, 0, 0, at), "seq is 8"),
        (lambda: arena.import_tiles(sequence, -1, 0, 0, at), "layer is -1"),
        (lambda: arena.truncate(sequence, 1), "tokens is 1; it must lie between 0 and 0"),
        (lambda: arena.length(8), "seq is 8"),
    ]:
        with pytest.raises(NativeError, match=message):
            call()
    arena.set_blocks(sequence, 0, [3, 4])
    with pytest.raises(NativeError, match="start is 1; it must lie between 0 and 0"):
        arena.import_tokens(sequence, 0, 1, 1, at, at)
    with pytest.raises(NativeError, match="k is NULL"):
        arena.import_tokens(sequence, 0, 0, 1, 0, at)
    for start, count, tiles, message in [
        (0, 15, at, "count is 15; it must be a multiple of 16"),
        (0, 48, at, "count is 48; it must lie between 0 and 32"),
        (0, -16, at, "count is -16; it must lie between 0 and 32"),
        (16, 16, at, "start is 16; it must lie between 0 and 0"),
        (0, 16, 0, "tiles is NULL; it must hold 1 blocks"),
    ]:
        with pytest.raises(NativeError, match=message):
            arena.import_tiles(sequence, 0, start, count, tiles)
    arena.import_tokens(sequence, 0, 0, 1, at, at)
    with pytest.raises(NativeError, match="start is 1; it must be a multiple of 16"):
        arena.import_tiles(sequence, 0, 1, 16, at)
    with pytest.raises(NativeError, match="stride is 31; it must lie between 32"):
        arena.append(sequence, 0, 0, 1, at, at, stride=31)


def test_bad_attention_is_named(arena: Arena) -> None:
    sequence = arena.open_sequence()
    arena.set_blocks(sequence, 0, [3])
    rows = np.zeros((40, 64), np.float32)
    at = rows.ctypes.data

    def attend(q_heads: int = 4, start: int = 0, q_len: int = 1, scale: float = 1.0) -> None:
        call = AttendCall(arena, q_heads, DType.F32, scale, 4)
        call.set_segments(np.array([sequence]), np.array([q_len]), np.array([start]))
        call.set_strides(64, 32, 32, 64)
        call.run(0, at, at, at, at)

    for change, message in [
        ({"q_heads": 3}, "q_heads is 3; it must be a multiple of the 2 kv heads"),
        ({"q_heads": 34}, "q_heads is 34; it must lie between 2 and 32"),
        ({"start": 1}, r"segments\[0\] is seq 0, start 1, q_len 1"),
        ({"q_len": 17}, r"q_len must be at least 1 and end by token 16"),
        ({"scale": 0.0}, "scale is 0; it must be positive"),
        ({"scale": float("nan")}, "scale is nan"),
    ]:
        with pytest.raises(NativeError, match=message):
            attend(**change)
    with pytest.raises(ValueError, match="5 segments; there is room for 4"):
        AttendCall(arena, 4, DType.F32, 1.0, 4).set_segments(*(np.zeros(5, np.int64),) * 3)


def test_a_closed_arena_says_so() -> None:
    arena, sequence = make(DType.F32)
    arena.close()
    arena.close()
    with pytest.raises(ValueError, match="this arena is closed"):
        arena.length(sequence)
