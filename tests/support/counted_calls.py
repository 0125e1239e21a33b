"""The calls whose instructions are counted, through the library alone. Under callgrind it is run
as a script with a group's name and the folder of cffi; it must start fast, so no numpy."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LIBRARY_FOLDER = ROOT / "native/omniserve_native"
CONTEXT = 512
F32, BF16, F16, I8 = range(4)
# name: KV dtype, group, q_len, head size
ATTENTION = {
    "bf16 group 1": (BF16, 1, 1, 128),
    "bf16 group 4": (BF16, 4, 1, 128),
    "bf16 group 8": (BF16, 8, 1, 128),
    "bf16 group 4, 4 tokens": (BF16, 4, 4, 128),
    "bf16 group 3, head size 64": (BF16, 3, 1, 64),
    "fp16 group 4": (F16, 4, 1, 128),
    "fp32 group 4": (F32, 4, 1, 128),
    "int8 group 4": (I8, 4, 1, 128),
    "int8 group 8": (I8, 8, 1, 128),
}
# name: rows
DENSE = {"layer, 2 rows": 2, "layer, 64 rows": 64}
HIDDEN, INTERMEDIATE, Q_HEADS, KV_HEADS, HEAD_SIZE = 256, 512, 4, 2, 64
HOPS = ("submit 16 slots", "pick 16 slots")
SLOTS = 16
# name: way, KV dtype, dtype of rows, first token, tokens
TOKENS = {
    "append bf16, 1 token": ("append", BF16, BF16, 5, 1),
    "append bf16, 64 tokens": ("append", BF16, BF16, 0, 64),
    "append fp32 to bf16, 64 tokens": ("append", BF16, F32, 0, 64),
    "append bf16 to int8, 64 tokens": ("append", I8, BF16, 0, 64),
    "append fp16, 64 tokens": ("append", F16, F16, 0, 64),
    "append fp16 to int8, 64 tokens": ("append", I8, F16, 0, 64),
    "import bf16, 64 tokens": ("import", BF16, BF16, 0, 64),
    "export bf16, 64 tokens": ("export", BF16, BF16, 0, 64),
    "import int8, 64 tokens": ("import", I8, I8, 0, 64),
    "export int8, 64 tokens": ("export", I8, I8, 0, 64),
}


class Library:
    """cffi's view of the library, and what every group needs of it."""

    def __init__(self, site: str) -> None:
        sys.path[:0] = [str(LIBRARY_FOLDER), site]
        module: Any = importlib.import_module("_omniserve")
        self.ffi, self.lib = module.ffi, module.lib

    def end_case(self) -> None:
        """Calls what callgrind ends a case at."""
        self.lib.os_last_status()

    def check(self, status: int) -> int:
        """Raises the library's own error."""
        if status < 0:
            raise RuntimeError(self.ffi.string(self.lib.os_last_error()).decode())
        return status

    def arena(self, kv_heads: int, head_size: int, dtype: int, tokens: int) -> Any:
        """One layer; sequence 0 has room for `tokens`."""
        blocks = tokens // 16
        config = self.ffi.new(
            "os_arena_config *", [1, kv_heads, head_size, blocks, SLOTS, blocks, dtype]
        )
        arena = self.lib.os_arena_create(config)
        self.check(self.lib.os_seq_open(arena))
        table = self.ffi.new("int32_t[]", list(range(blocks)))
        self.check(self.lib.os_seq_set_blocks(arena, 0, 0, blocks, table))
        return arena

    def rows(self, dtype: int, count: int) -> Any:
        """`count` numbers that differ little."""
        if dtype == F32:
            return self.ffi.new("float[]", [0.5 + (i * 37 % 64) / 64 for i in range(count)])
        first, steps = (0x3800, 1024) if dtype == F16 else (0x3F00, 256)
        return self.ffi.new("uint16_t[]", [first + i * 37 % steps for i in range(count)])


def attention(library: Library) -> None:
    """One kv head over CONTEXT tokens, as bf16 or the KV's own dtype."""
    ffi, lib = library.ffi, library.lib
    for dtype, group, q_len, head_size in ATTENTION.values():
        arena = library.arena(1, head_size, dtype, CONTEXT)
        kind = BF16 if dtype == I8 else dtype
        kv = library.rows(kind, CONTEXT * head_size)
        library.check(lib.os_arena_append(arena, 0, 0, 0, CONTEXT, kv, kv, head_size, kind))
        segment = ffi.new("os_segment *", [0, q_len, CONTEXT - q_len])
        args = ffi.new("os_attend_args *")
        args.arena, args.q_heads, args.dtype, args.scale = arena, group, kind, head_size**-0.5
        q, o = (library.rows(kind, q_len * group * head_size) for _ in range(2))
        args.q, args.o, args.segments, args.segments_count = q, o, segment, 1
        args.q_stride = args.o_stride = group * head_size
        library.check(lib.os_attend(args))
        library.end_case()
        lib.os_arena_destroy(arena)


def dense(library: Library) -> None:
    """Both halves of a small layer."""
    ffi, lib = library.ffi, library.lib
    qkv_size, q_size = (Q_HEADS + 2 * KV_HEADS) * HEAD_SIZE, Q_HEADS * HEAD_SIZE
    values = library.rows(BF16, 2 * INTERMEDIATE * HIDDEN)
    config = ffi.new(
        "os_dense_config *", [HIDDEN, INTERMEDIATE, Q_HEADS, KV_HEADS, HEAD_SIZE, 1e-5]
    )
    for name in ("qkv", "o", "gate_up", "down"):
        getattr(config, name).values = values
    config.input_norm = config.mlp_norm = values
    memory = ffi.new("char[]", library.check(lib.os_dense_scratch_bytes(config)) + 64)
    scratch = (int(ffi.cast("uintptr_t", memory)) // 64 + 1) * 64
    layer = lib.os_dense_create(config, ffi.cast("void *", scratch))
    for rows in DENSE.values():
        x, o = library.rows(BF16, rows * HIDDEN), library.rows(BF16, rows * q_size)
        rope, qkv = library.rows(BF16, rows * 2 * HEAD_SIZE), library.rows(BF16, rows * qkv_size)
        both = layer, ffi.NULL, rows
        library.check(lib.os_dense_before(*both, x, HIDDEN, rope, 2 * HEAD_SIZE, qkv, qkv_size))
        library.check(lib.os_dense_after(*both, o, q_size, x, HIDDEN))
        library.end_case()


def hops(library: Library) -> None:
    """SLOTS rows leave while the workers' gate is closed, and are picked once all are back."""
    ffi, lib = library.ffi, library.lib
    arena, dtype, width = library.arena(KV_HEADS, HEAD_SIZE, BF16, 16 * SLOTS), BF16, HEAD_SIZE
    workers = lib.os_workers_create(ffi.new("os_workers_config *", {"count": 1}))
    config = [arena, workers, SLOTS, Q_HEADS, HIDDEN, dtype, 1, 0, 0.125]
    exchange = lib.os_exchange_create(ffi.new("os_exchange_config *", config))
    slots, q_width, kv_width = ffi.new("int32_t[]", SLOTS), Q_HEADS * width, KV_HEADS * width
    for i in range(SLOTS):
        seq = library.check(lib.os_seq_open(arena)) if i else 0
        library.check(lib.os_seq_set_blocks(arena, seq, 0, 1, ffi.new("int32_t[]", [i])))
        slots[i] = library.check(lib.os_slot_open(exchange, seq))
        library.check(lib.os_slot_begin(exchange, slots[i], 0, 1))
    q, x = library.rows(BF16, SLOTS * q_width), library.rows(BF16, SLOTS * HIDDEN)
    kv, strides = library.rows(BF16, SLOTS * kv_width), (q_width, kv_width, kv_width)
    rows = [part for row in zip((q, kv, kv), strides, strict=True) for part in row]
    lib.os_workers_pause(workers)
    library.check(lib.os_exchange_submit(exchange, 0, 0, SLOTS, slots, *rows, x, HIDDEN))
    library.end_case()
    lib.os_workers_resume(workers)
    stats = ffi.new("os_exchange_stats *")
    while stats.ready < SLOTS:
        library.check(lib.os_exchange_get_stats(exchange, stats))
    positions, count = ffi.new("int64_t[]", SLOTS), ffi.new("int32_t *")
    back = q, q_width, x, HIDDEN, positions, count
    library.check(lib.os_exchange_pick(exchange, 0, 0, SLOTS, 0, slots, *back))
    library.end_case()
    lib.os_exchange_destroy(exchange)
    lib.os_workers_destroy(workers)


def tokens(library: Library) -> None:
    """Rows of two kv heads of 128 into tiles and out of them."""
    lib, size = library.lib, 128
    for way, kv, kind, start, count in TOKENS.values():
        arena = library.arena(KV_HEADS, size, kv, 64)
        library.check(lib.os_seq_truncate(arena, 0, 64 if way == "export" else start))
        rows = library.rows(BF16 if kind == I8 else kind, 64 * KV_HEADS * size)
        where = arena, 0, 0, start, count, rows, rows
        if way == "append":
            library.check(lib.os_arena_append(*where, KV_HEADS * size, kind))
        else:
            library.check(getattr(lib, f"os_arena_{way}")(*where))
        library.end_case()
        lib.os_arena_destroy(arena)


if __name__ == "__main__":
    {"attention": attention, "dense": dense, "hops": hops, "tokens": tokens}[sys.argv[1]](
        Library(sys.argv[2])
    )
