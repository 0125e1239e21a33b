"""KV that the device packs lies in the host arena bit for bit as the host would have packed it."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from omniserve_agent.engine.kv import torch_copies
from omniserve_agent.engine.kv.dtypes import NATIVE_DTYPES
from omniserve_agent.engine.kv.tiles import LEAST_MAGNITUDE, pack_tiles, whole_blocks
from omniserve_agent.engine.kv.torch_copies import TorchCopies
from omniserve_agent.engine.kv.torch_store import TorchKv
from omniserve_native import Arena, ArenaConfig, DType
from omniserve_native.library import ffi, lib
from support.fake_engine import submit
from support.real_engine import check_same, engine_for, generate
from support.tiny_models import TINY_MODELS

HEADS, BLOCKS = 3, 12
# From which token on how many are written; the tokens before are there already.
SPANS = [(0, 1), (0, 15), (0, 16), (0, 80), (0, 77), (5, 11), (5, 12), (5, 93), (16, 101), (31, 33)]
CASES = [
    (kv, rows) for kv in DType for rows in NATIVE_DTYPES if kv in (NATIVE_DTYPES[rows], DType.I8)
]
ON_CUDA = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]
DEVICES = ["cpu", pytest.param("cuda", marks=ON_CUDA)]


def tiles_of(arena):
    """All of its bytes, to read and write."""
    memory = ffi.new("os_arena_memory *")
    assert lib.os_arena_get_memory(arena.handle, memory) == 0
    return np.frombuffer(ffi.buffer(ffi.cast("char *", memory.tiles), memory.bytes), np.uint8)


def edges(size):
    """Rows at the borders of what int8 does with them: ties, the least magnitude, zeros."""
    ties = torch.arange(size) % 127 + 0.5
    ties[-1] = 127.0  # the scale is 1
    least = torch.full((size,), LEAST_MAGNITUDE)
    return torch.stack([ties, -ties, least, least.nextafter(torch.zeros(size)), 0 * ties])


def make_rows(dtype, count, size, seed):
    """k and v: ordinary rows, rows of any magnitude, rows of any bits, and edges."""
    generator = torch.Generator().manual_seed(seed)

    def some(low, high, width, **kind):
        return torch.randint(low, high, (2, count, HEADS, width), generator=generator, **kind)

    ordinary = torch.randn(2, count, HEADS, size, generator=generator)
    spread = (ordinary * 10.0 ** some(-44, 38, 1)).to(dtype)
    anything = some(0, 256, size * dtype.itemsize, dtype=torch.uint8).view(dtype)
    which = some(0, 3, 1)
    rows = torch.where(which == 0, spread, torch.where(which == 1, anything, ordinary.to(dtype)))
    known = edges(size)[:count].to(dtype)
    rows[:, : len(known), 0] = known
    return rows


def written(device, kv, rows, start, packs_from):
    """An arena's bytes and the length, tokens before `start` and then the rest written."""
    _, count, _, size = rows.shape
    arena = Arena(ArenaConfig(1, HEADS, size, BLOCKS, 2, BLOCKS, kv))
    tiles_of(arena)[:] = 0xA5
    sequence = arena.open_sequence()
    arena.set_blocks(sequence, 0, np.random.default_rng(0).permutation(BLOCKS))
    shape = SimpleNamespace(layers=1, kv_heads=HEADS, head_size=size)
    store = TorchKv(shape, 1, 16, rows.dtype, torch.device(device), 1)
    k, v = rows.to(device)
    for first, end, least in ((0, start, None), (start, count, packs_from)):
        copies = TorchCopies(store, arena, NATIVE_DTYPES[rows.dtype], least)
        copies.write(sequence, 0, first, k[first:end], v[first:end])
    result = tiles_of(arena).copy(), arena.length(sequence)
    arena.close()
    return result


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", [16, 24, 64, 80, 128, 256])
@pytest.mark.parametrize(("kv", "dtype"), CASES)
def test_the_device_packs_what_the_host_would(kv, dtype, size, device, monkeypatch):
    monkeypatch.setattr(torch_copies, "PIECE_TOKENS", 32)
    for seed, (start, count) in enumerate(SPANS):
        rows = make_rows(dtype, start + count, size, seed)
        by_host, length = written(device, kv, rows, start, None)
        by_device, same_length = written(device, kv, rows, start, 0)
        assert np.array_equal(by_host, by_device), (start, count)
        assert length == same_length == start + count


@pytest.mark.parametrize(
    ("start", "count", "expected"),
    [(0, 0, (0, 0)), (0, 15, (0, 0)), (0, 33, (0, 32)), (3, 4, (4, 4)), (3, 13, (13, 13)),
     (3, 60, (13, 45)), (16, 16, (0, 16))],
)  # fmt: skip
def test_whole_blocks(start, count, expected):
    assert whole_blocks(start, count) == expected


@pytest.mark.parametrize("least", [None, 49, 48])
def test_few_blocks_are_left_to_the_host(least, monkeypatch):
    packed = []

    def noting(k, v, layout):
        packed.append(len(k))
        return pack_tiles(k, v, layout)

    monkeypatch.setattr(torch_copies, "pack_tiles", noting)
    written("cpu", DType.BF16, make_rows(torch.bfloat16, 70, 16, 0), 5, least)
    assert packed == ([48] if least == 48 else [])


def test_an_unknown_layout_is_refused():
    with Arena(ArenaConfig(1, HEADS, 16, 1, 1, 1, DType.F32)) as arena:
        layout = replace(arena.layout(), v_order="dim,token")
    rows = torch.zeros(16, HEADS, 16)
    with pytest.raises(ValueError, match=r"orders \('dim,token', 'dim,token'\)"):
        pack_tiles(rows, rows, layout)


@pytest.mark.parametrize(
    "path", [{"attention": "torch"}, pytest.param({"device": "cuda"}, marks=ON_CUDA)]
)
def test_prompts_whose_kv_the_device_packed_go_on_exactly(path, tiny_model_dir, reference_generate):
    model_dir = tiny_model_dir(TINY_MODELS[0])
    asked = {f"be{n}": [(7 * i + n) % 199 + 3 for i in range(n)] for n in (16, 33, 70)}
    with engine_for(model_dir, be_device_residency=False, **path) as engine:
        engine.executor.copies.packs_from = 0
        got = generate(engine, [submit(k, p, "BE", max_tokens=12) for k, p in asked.items()])
        for key, prompt in asked.items():
            check_same(key, got[key], *reference_generate(model_dir, prompt, 12))
