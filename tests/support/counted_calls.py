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
SLOTS = 16
HOPS = (f"submit {SLOTS} slots", f"pick {SLOTS} slots")
LANES = SLOTS // 2
LAYER = (
    "nothing to do",
    "2 device rows",
    f"{LANES} rows leave",
    f"{LANES} rows leave and {LANES} join",
)
SPLIT_TOKENS, FAMILY, PREFIX_BLOCKS = 2048, 4, 40
PARTS = ("a row split in 4", f"a prefix that {FAMILY} rows share")
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


class Exchange:
    """A slot at position `start` for each block table, and one worker behind a closed gate."""

    def __init__(self, library: Library, tables: list[list[int]], start: int = 0) -> None:
        self.library, ffi, lib = library, library.ffi, library.lib
        blocks, dtype = 1 + max(block for table in tables for block in table), BF16
        self.arena = library.arena(KV_HEADS, HEAD_SIZE, dtype, 16 * blocks)
        self.workers = lib.os_workers_create(ffi.new("os_workers_config *", {"count": 1}))
        config = [self.arena, self.workers, SLOTS, Q_HEADS, HIDDEN, dtype, 1, 0, 0.125]
        self.exchange = lib.os_exchange_create(ffi.new("os_exchange_config *", config))
        slots = [self._open(i, tables[i], start) for i in range(len(tables))]
        self.slots, self.count = ffi.new("int32_t[]", slots), len(slots)
        q_width, kv_width = Q_HEADS * HEAD_SIZE, KV_HEADS * HEAD_SIZE
        self.q, self.kv = (library.rows(dtype, SLOTS * width) for width in (q_width, kv_width))
        self.x, self.strides = library.rows(dtype, SLOTS * HIDDEN), (q_width, kv_width, kv_width)
        self.positions = ffi.new("int64_t[]", SLOTS)
        lib.os_workers_pause(self.workers)

    def _open(self, i: int, table: list[int], start: int) -> int:
        library, lib = self.library, self.library.lib
        seq = library.check(lib.os_seq_open(self.arena)) if i else 0
        blocks = library.ffi.new("int32_t[]", table)
        library.check(lib.os_seq_set_blocks(self.arena, seq, 0, len(table), blocks))
        library.check(lib.os_seq_truncate(self.arena, seq, start))
        slot = library.check(lib.os_slot_open(self.exchange, seq))
        library.check(lib.os_slot_begin(self.exchange, slot, start, 1))
        return slot

    def submit(self) -> None:
        """All slots leave."""
        places = zip((self.q, self.kv, self.kv), self.strides, strict=True)
        rows = *(part for place in places for part in place), self.x, HIDDEN
        submission = self.exchange, 0, 0, self.count, self.slots, *rows
        self.library.check(self.library.lib.os_exchange_submit(*submission))

    def attend(self, count: int) -> None:
        """The gate is open until so many hops are back."""
        lib, stats = self.library.lib, self.library.ffi.new("os_exchange_stats *")
        lib.os_workers_resume(self.workers)
        while stats.ready < count:
            self.library.check(lib.os_exchange_get_stats(self.exchange, stats))
        lib.os_workers_pause(self.workers)

    def pick(self) -> None:
        """All slots join."""
        rows = self.q, self.strides[0], self.x, HIDDEN, self.positions
        asked = self.exchange, 0, 0, self.count, 0, self.slots, *rows
        self.library.check(
            self.library.lib.os_exchange_pick(*asked, self.library.ffi.new("int32_t *"))
        )

    def layer_args(self) -> Any:
        """Of a layer's call with LANES join lanes and nothing else."""
        args = self.library.ffi.new("os_layer_args *")
        device = args.device
        device.arena, device.q_heads, device.dtype, device.scale = self.arena, Q_HEADS, BF16, 0.125
        device.q = device.o = self.q
        device.k = device.v = self.kv
        device.q_stride, device.k_stride, device.v_stride = self.strides
        device.o_stride, args.residual_stride = self.strides[0], HIDDEN
        args.residual, args.positions, args.tail_slots = self.x, self.positions, self.slots
        args.max_join_rows = LANES
        return args

    def close(self) -> None:
        """Nothing is under way any more."""
        self.library.lib.os_exchange_destroy(self.exchange)
        self.library.lib.os_workers_destroy(self.workers)


def hops(library: Library) -> None:
    """SLOTS rows leave while the workers' gate is closed, and are picked once all are back."""
    exchange = Exchange(library, [[i] for i in range(SLOTS)])
    exchange.submit()
    library.end_case()
    exchange.attend(SLOTS)
    exchange.pick()
    library.end_case()
    exchange.close()


def layer(library: Library) -> None:
    """What LAYER names, one call each; the workers' gate is closed meanwhile."""
    exchange = Exchange(library, [[i] for i in range(SLOTS)])
    args, ffi = exchange.layer_args(), library.ffi

    def run() -> None:
        library.check(library.lib.os_layer(exchange.exchange, args))
        library.end_case()

    run()
    segments = ffi.new("os_segment[]", [[0, 1, 0], [1, 1, 0]])
    args.device.segments, args.device.segments_count, args.device_rows = segments, 2, 2
    run()
    args.device.segments_count = args.device_rows = 0
    args.tail_count = LANES
    run()
    exchange.attend(LANES)
    args.tail_slots, args.tail_count = exchange.slots + LANES, LANES
    run()
    exchange.attend(LANES)
    exchange.close()


def parts(library: Library) -> None:
    """A row whose KV the caller and a worker share out, then rows that have a prefix in common."""
    split_row(library)
    library.end_case()
    prefix = list(range(PREFIX_BLOCKS))
    tables = [[*prefix, PREFIX_BLOCKS + i] for i in range(FAMILY)]
    exchange = Exchange(library, tables, start=16 * PREFIX_BLOCKS)
    exchange.submit()
    exchange.attend(FAMILY)
    library.end_case()
    exchange.close()


def split_row(library: Library) -> None:
    """One kv head, group 4, head size 128."""
    ffi, lib, size, group = library.ffi, library.lib, 128, 4
    arena = library.arena(1, size, BF16, SPLIT_TOKENS)
    library.check(lib.os_seq_truncate(arena, 0, SPLIT_TOKENS))
    workers = lib.os_workers_create(ffi.new("os_workers_config *", {"count": 1}))
    segment, args = ffi.new("os_segment *", [0, 1, SPLIT_TOKENS - 1]), ffi.new("os_attend_args *")
    args.arena, args.workers, args.q_heads = arena, workers, group
    args.dtype, args.scale, args.segments, args.segments_count = BF16, size**-0.5, segment, 1
    args.q = args.o = q = library.rows(BF16, group * size)
    args.q_stride = args.o_stride = len(q)
    library.check(lib.os_attend(args))
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


CALLS = {
    "attention": attention,
    "dense": dense,
    "hops": hops,
    "layer": layer,
    "parts": parts,
    "tokens": tokens,
}

if __name__ == "__main__":
    CALLS[sys.argv[1]](Library(sys.argv[2]))
