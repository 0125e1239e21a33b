"""One call of attention per shape, for callgrind to count. No torch: valgrind is slow enough."""

from __future__ import annotations

import numpy as np

from omniserve_native import Arena, ArenaConfig, AttendCall, DType

SIZE, CONTEXT = 128, 512
SHAPES = {
    f"{dtype.name.lower()} group {group} q_len {q_len}": (dtype, group, q_len)
    for dtype in DType
    for group, q_len in ((1, 1), (4, 1), (8, 1), (4, 4))
}


def attend(dtype: DType, group: int, q_len: int) -> None:
    """Rows without new KV; bf16 queries over 2-byte and int8 KV."""
    blocks = (CONTEXT + q_len + 15) // 16
    rows = DType.F32 if dtype is DType.F32 else DType.BF16
    random = np.random.default_rng(0)
    with Arena(ArenaConfig(1, 1, SIZE, blocks, 1, blocks, dtype)) as arena:
        sequence = arena.open_sequence()
        arena.set_blocks(sequence, 0, range(blocks))
        kv = random.standard_normal((CONTEXT + q_len, SIZE)).astype(np.float32)
        at = kv.ctypes.data
        arena.append(sequence, 0, 0, len(kv), at, at, dtype=DType.F32)
        q = np.zeros((q_len, group * SIZE), np.float32)
        o = np.zeros_like(q)
        call = AttendCall(arena, group, rows, 0.1, 1)
        call.set_segments(np.array([sequence]), np.array([q_len]), np.array([CONTEXT]))
        call.set_strides(group * SIZE, SIZE, SIZE, group * SIZE)
        call.run(0, q.ctypes.data, 0, 0, o.ctypes.data)


if __name__ == "__main__":
    for shape in SHAPES.values():
        attend(*shape)
