"""The C side of the two roofs: what they read and multiply, not how fast."""

from __future__ import annotations

import ctypes
import os
import platform

import numpy as np
import pytest

import multiply
import roof
from multiply import Arithmetic
from roof import CHUNK_BYTES, WAYS, Way
from together import Team, Work

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="flags and intrinsics of x86-64"
)


@pytest.fixture(scope="module")
def team():
    with Team(sorted(os.sched_getaffinity(0))[:1]) as one:
        yield one


@pytest.fixture(scope="module")
def read(team: Team):
    function = team.compiled(roof.SOURCE, []).roof_read
    function.restype = ctypes.c_uint64
    return function


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_every_way_reads_each_byte_once(read, way: Way) -> None:
    chunks = 3
    memory = np.zeros(chunks * CHUNK_BYTES // 8 + 8, np.uint64)
    start = -memory.ctypes.data % 64 // 8
    words = memory[start : start + chunks * CHUNK_BYTES // 8]
    words[:] = np.random.default_rng(0).integers(0, 1 << 63, words.size, np.uint64)
    parts, times = (ctypes.c_void_p * 1)(words.ctypes.data), (ctypes.c_int64 * 2)()
    sizes = ctypes.c_int64(way.streams), ctypes.c_int64(way.ahead_bytes)
    found = read(ctypes.byref(Work(1, chunks, 0, 0)), times, parts, *sizes)
    assert found == int(np.bitwise_xor.reduce(words))
    assert 0 < times[0] <= times[1]


@pytest.mark.parametrize("isa", multiply.FLAGS)
def test_every_path_compiles_with_all_its_units(team: Team, isa: str) -> None:
    library = team.compiled(multiply.SOURCE, multiply.FLAGS[isa])
    for unit in multiply.PER_LANE:
        assert getattr(library, f"multiply_{unit}")


def test_sums_stay_finite_and_differ(team: Team) -> None:
    """Else the compiler or the processor would take a short cut."""
    path = Arithmetic(team, "portable")
    function = path._library.multiply_floats
    function.restype = ctypes.c_double
    results = []
    for chunks in (0, 1):
        work, times = Work(1, chunks, 0, 0), (ctypes.c_int64 * 2)()
        results.append(function(ctypes.byref(work), times, path._x, path._y))
    assert np.isfinite(results).all()
    assert results[0] != results[1]


def test_units_of_paths(team: Team) -> None:
    path = Arithmetic(team, "avx2")
    assert [path.unit(dtype) for dtype in ("bf16", "i8")] == ["floats", "pairs"]
