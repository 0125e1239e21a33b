"""Fixtures of the native tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from omniserve_native import Arena, ArenaConfig, DType, Exchange, ExchangeConfig, Workers


@pytest.fixture
def workers() -> Iterator[Workers]:
    """Two workers that hardly spin: the machine is shared."""
    with Workers(2, spin_ns=1000) as pool:
        yield pool


@pytest.fixture
def arena() -> Iterator[Arena]:
    """Two layers, two kv heads of 16, float32, 64 blocks."""
    with Arena(ArenaConfig(2, 2, 16, 64, 8, 16, DType.F32)) as created:
        yield created


@pytest.fixture
def exchange(arena: Arena, workers: Workers) -> Iterator[Exchange]:
    """Four slots, group 2, hidden size 24."""
    config = ExchangeConfig(slots=4, q_heads=4, hidden_size=24, dtype=DType.F32, scale=0.25)
    with Exchange(config, arena, workers) as created:
        yield created
