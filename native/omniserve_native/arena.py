"""KV blocks of one tier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from omniserve_native.library import Closing, DType, Pointer, checked, created, ffi, lib, pointer
from omniserve_native.memory import ArenaMemory, Policy, huge_page_bytes
from omniserve_native.workers import Workers


@dataclass(frozen=True, slots=True)
class ArenaConfig:
    """Shape of an arena; `blocks` of BLOCK_TOKENS tokens, over all layers."""

    layers: int
    kv_heads: int
    head_size: int
    blocks: int
    max_sequences: int
    max_blocks_per_sequence: int
    dtype: DType

    def native(self) -> Pointer:
        """The `os_arena_config *`."""
        return ffi.new(
            "os_arena_config *",
            {name: int(getattr(self, name)) for name in self.__dataclass_fields__},
        )

    @property
    def bytes(self) -> int:
        """What the arena would map."""
        return checked(lib.os_arena_bytes(self.native()))


@dataclass(frozen=True, slots=True)
class Layout:
    """How bytes lie in a tile; arenas of equal layouts may exchange raw tiles."""

    version: int
    dtype: DType
    block_tokens: int
    kv_heads: int
    head_size: int
    tile_bytes: int
    isa: str
    k_order: str
    v_order: str


class Arena(Closing):
    """Blocks and sequences. One thread, the engine's, calls it. Addresses are of C-contiguous rows
    [kv_heads, head_size] in host memory. Every method raises NativeError naming the bad argument.
    """

    def __init__(self, config: ArenaConfig) -> None:
        self._handle: Pointer = ffi.NULL
        self.config = config
        self._handle = created(lib.os_arena_create(config.native()))

    @property
    def handle(self) -> Pointer:
        """The `os_arena *`."""
        if self._handle == ffi.NULL:
            raise ValueError("this arena is closed")
        return self._handle

    def prefault(self, workers: Workers | None = None) -> None:
        """Touches every page, by the workers where given; it then comes from their NUMA nodes."""
        checked(lib.os_arena_prefault(self.handle, workers.handle if workers else ffi.NULL))

    def memory(self) -> ArenaMemory:
        """Where its pages lie. Reads /proc/self/smaps: not while somebody waits."""
        out = ffi.new("os_arena_memory *")
        checked(lib.os_arena_get_memory(self.handle, out))
        huge = huge_page_bytes(int(ffi.cast("uintptr_t", out.tiles)), out.bytes)
        return ArenaMemory(out.bytes, huge, Policy(out.policy), out.refused)

    def layout(self) -> Layout:
        """The layout descriptor."""
        out = ffi.new("os_layout *")
        checked(lib.os_arena_layout(self.handle, out))
        texts = [ffi.string(text).decode() for text in (out.isa, out.k_order, out.v_order)]
        sizes = (out.block_tokens, out.kv_heads, out.head_size, out.tile_bytes)
        return Layout(out.version, DType(out.dtype), *sizes, *texts)

    # ---- sequences -------------------------------------------------------------------------

    def open_sequence(self) -> int:
        """A new, empty sequence with one reference."""
        return checked(lib.os_seq_open(self.handle))

    def retain_sequence(self, sequence: int) -> None:
        """One reference more."""
        checked(lib.os_seq_retain(self.handle, sequence))

    def release_sequence(self, sequence: int) -> int:
        """References left; at 0 the id may be used again."""
        return checked(lib.os_seq_release(self.handle, sequence))

    def set_blocks(
        self, sequence: int, first: int, blocks: npt.NDArray[np.int32] | Sequence[int]
    ) -> None:
        """Writes the block table from entry `first` on."""
        table = np.ascontiguousarray(blocks, np.int32)
        address = ffi.cast("int32_t *", table.ctypes.data)
        checked(lib.os_seq_set_blocks(self.handle, sequence, first, len(table), address))

    def length(self, sequence: int) -> int:
        """Valid tokens."""
        return checked(lib.os_seq_length(self.handle, sequence))

    def truncate(self, sequence: int, tokens: int) -> None:
        """Sets the valid length: forget tokens, or declare attached prefix blocks as valid."""
        checked(lib.os_seq_truncate(self.handle, sequence, tokens))

    # ---- tokens ----------------------------------------------------------------------------

    def append(
        self,
        sequence: int,
        layer: int,
        start: int,
        count: int,
        k: int,
        v: int,
        stride: int | None = None,
        dtype: DType | None = None,
    ) -> None:
        """Writes `count` tokens of one layer from addresses of rows of `dtype` (the arena's own by
        default; int8 arenas need one), `stride` elements apart (default: dense). Raises the
        length."""
        width = self.config.kv_heads * self.config.head_size
        row = stride if stride is not None else width
        kind = dtype if dtype is not None else self.config.dtype
        addresses = pointer(k), pointer(v)
        checked(
            lib.os_arena_append(self.handle, sequence, layer, start, count, *addresses, row, kind)
        )

    def import_tokens(
        self, sequence: int, layer: int, start: int, count: int, k: int, v: int
    ) -> None:
        """Writes dense rows of the arena's dtype (`DType.head_bytes` per kv head); exporting gives
        the same bytes again."""
        addresses = pointer(k), pointer(v)
        checked(lib.os_arena_import(self.handle, sequence, layer, start, count, *addresses))

    def import_tiles(self, sequence: int, layer: int, start: int, count: int, tiles: int) -> None:
        """Writes whole blocks from tiles [blocks, kv_heads] of `Layout.tile_bytes`, packed as the
        layout tells."""
        where = sequence, layer, start, count
        checked(lib.os_arena_import_tiles(self.handle, *where, pointer(tiles)))

    def export_tokens(
        self, sequence: int, layer: int, start: int, count: int, k: int, v: int
    ) -> None:
        """Reads dense rows of the arena's dtype into k and v."""
        addresses = pointer(k), pointer(v)
        checked(lib.os_arena_export(self.handle, sequence, layer, start, count, *addresses))

    def read(
        self,
        sequence: int,
        layer: int,
        start: int,
        count: int,
        k: int,
        v: int,
        dtype: DType,
        stride: int | None = None,
    ) -> None:
        """The inverse of `append`: writes rows of `dtype` to k and v."""
        row = stride if stride is not None else self.config.kv_heads * self.config.head_size
        where = sequence, layer, start, count
        checked(lib.os_arena_read(self.handle, *where, pointer(k), pointer(v), row, dtype))

    def copy_to(self, to: Arena, sequence: int, to_sequence: int, start: int, count: int) -> None:
        """Copies tokens [start, start + count) of every layer into a sequence of another arena,
        which may store another dtype."""
        checked(
            lib.os_arena_copy(to.handle, to_sequence, self.handle, sequence, start, count),
        )

    # ---- end -------------------------------------------------------------------------------

    def close(self) -> None:
        """Unmaps the memory. Exchanges that use the arena must be closed before."""
        handle, self._handle = self._handle, ffi.NULL
        lib.os_arena_destroy(handle)
