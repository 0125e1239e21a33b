"""What the simulator is held against."""

from colocation_client import CellFigures, LsResult
from colocation_setup import CPU, EMULATED
from simulator import EMULATED_PROFILE, Line, Side, measured, read
from store import Store


def figures(requests, be_tokens=0, overflow_tokens=0):
    return CellFigures(
        requests=requests,
        seconds=10.0,
        be_tokens=be_tokens,
        overflow_tokens=overflow_tokens,
        ceilings={},
        engine={},
        client_cpu_share=0.0,
    )


def test_an_engines_tokens_are_its_own():
    """The client counts the tokens of the CPU-only engine apart."""
    requests = [LsResult(0.0, 200, ttft_ms, 5.0, 20, 0.0) for ttft_ms in (50.0, 150.0)]
    cell = Line({"slo": [100, 10]}, figures(requests, 1000, 200))
    assert measured(cell) == (0.5, 100.0)


def test_cells_are_read_as_the_benchmark_keeps_them(tmp_path):
    key = {"device": "cpu", "policy": "omniserve", "round": 0, "slo": [100, 10]}
    store = Store(tmp_path / "cells.jsonl", CellFigures)
    for cell in ("heavy", "heavy bursty"):
        store.add(key | {"cell": cell}, figures([]))
    (cells,) = read(tmp_path / "cells.jsonl", "cpu").values()
    assert [cell.key["cell"] for cell in cells] == ["heavy", "heavy bursty"]
    assert not read(tmp_path / "cells.jsonl", "emulated")


def test_limits_are_those_of_the_benchmarks_flags():
    emulated = Side(EMULATED, EMULATED_PROFILE)
    engine = emulated.engine()
    assert (engine.slots, engine.max_device_rows, engine.join_rows) == (256, 160, 32)
    assert emulated.prompt_rows() == (512, 256)
    own = Side(CPU, EMULATED_PROFILE)
    engine = own.engine()
    token = 2 * 2 * 30 * 3 * 64  # K and V in two bytes: layers, kv heads, head size
    assert engine.device_blocks == (192 << 20) // (16 * token)
    assert engine.host_blocks == (2 << 30) // (16 * token)
    assert own.prompt_rows() == (128, 48)
