"""The arithmetic roof of an ISA path: multiply-adds on registers alone (multiply.c)."""

from __future__ import annotations

import ctypes
import random
import struct
from pathlib import Path

from together import Team

SOURCE = Path(__file__).with_name("multiply.c")
AVX2 = ["-mavx2", "-mfma"]
VNNI = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni"]
FLAGS: dict[str, list[str]] = {
    "portable": [],
    "avx2": AVX2,
    "avx512": VNNI[:-1],
    "avx512_vnni": VNNI,
    "avx512_bf16": [*VNNI, "-mavx512bf16"],
}
"""As native/omniserve_native/build.py compiles the path's kernel."""
# What a path multiplies a KV dtype by where that is not float32.
UNITS = {
    ("avx2", "i8"): "pairs",
    ("avx512_vnni", "i8"): "bytes",
    ("avx512_bf16", "i8"): "bytes",
    ("avx512_bf16", "bf16"): "bf16",
}
# Multiply-adds of the shape that a lane does at a time. Bytes: four, but a query takes two bytes.
PER_LANE = {"floats": 1, "pairs": 2, "bytes": 2, "bf16": 2}
CHUNKS = 100  # per thread, each about 10 us: short, so that some pass is undisturbed
PASSES = 4


class Arithmetic:
    """G multiply-adds/s of one path's units."""

    def __init__(self, team: Team, isa: str) -> None:
        self._team, self._isa = team, isa
        self._library = team.compiled(SOURCE, ["-ffp-contract=fast", *FLAGS[isa]])
        self._library.multiply_sums.restype = ctypes.c_int64
        self._sums = int(self._library.multiply_sums())
        draw = random.Random(0)  # sums stay finite and no denormals turn up
        x, y = ([draw.uniform(0.5, 0.9) for _ in range(16)] for _ in "xy")
        self._x, self._y = (ctypes.create_string_buffer(struct.pack("16f", *v)) for v in (x, y))

    def unit(self, dtype: str) -> str:
        """By which the path multiplies KV of this dtype."""
        return UNITS.get((self._isa, dtype), "floats")

    def gmacs(self, threads: int, unit: str = "floats") -> float:
        """G multiply-adds/s on so many cores, of the best of some passes."""
        function = getattr(self._library, f"multiply_{unit}")
        function.restype = ctypes.c_double
        chunks = threads * CHUNKS
        taken = min(
            self._team.seconds(function, threads, chunks, self._x, self._y) for _ in range(PASSES)
        )
        return chunks * self._sums * PER_LANE[unit] / taken / 1e9
