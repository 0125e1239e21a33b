"""Where pages lie: policies as the kernel shows them, and huge pages as smaps tells them."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from omniserve_native import (
    Arena,
    ArenaConfig,
    DType,
    Exchange,
    ExchangeConfig,
    NativeError,
    Policy,
    Workers,
)
from omniserve_native.memory import huge_page_bytes

HUGE_PAGE = 2 << 20
THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")
CONFIG = ArenaConfig(2, 2, 64, 2048, 4, 8, DType.F32)  # 64 MiB


def policies(name: str) -> int:
    """Mappings of this process with such a policy."""
    lines = Path("/proc/self/numa_maps").read_text().splitlines()
    return sum(line.split()[1].startswith(name) for line in lines)


@pytest.mark.parametrize(
    ("nodes", "policy"),
    [([], Policy.FIRST_TOUCH), ([0], Policy.PREFERRED), ([0, 1023], Policy.INTERLEAVED)],
)
def test_an_arena_lies_where_its_workers_are(nodes: list[int], policy: Policy) -> None:
    with Arena(CONFIG) as arena, Workers(1, nodes=nodes) as workers:
        assert arena.memory().policy is Policy.FIRST_TOUCH
        arena.prefault(workers)
        memory = arena.memory()
        if memory.refused in (errno.EPERM, errno.ENOSYS):
            pytest.skip("mbind is refused here")
        assert (memory.policy, memory.refused) == (policy, 0)
        arena.prefault()  # by the caller: the policy stays
        assert arena.memory().policy is policy


def test_a_node_that_is_not_there_leaves_first_touch() -> None:
    with Arena(CONFIG) as arena, Workers(1, nodes=[1023]) as workers:
        arena.prefault(workers)
        assert arena.memory().policy is Policy.FIRST_TOUCH
        assert arena.memory().refused


def test_what_workers_share_lies_where_they_are() -> None:
    """Splits and shares; slots, which the device writes, lie where the engine's thread is."""
    config = ExchangeConfig(slots=4, q_heads=4, hidden_size=24, dtype=DType.F32, scale=0.25)
    with Arena(CONFIG) as arena, Workers(1, nodes=[0]) as workers:
        arena.prefault(workers)
        if arena.memory().refused:
            pytest.skip("mbind is refused here")
        before = policies("prefer")
        with Exchange(config, arena, workers):
            assert policies("prefer") > before


@pytest.mark.parametrize(
    ("nodes", "message"),
    [([0, -1], r"nodes\[1\] is -1"), ([1024], r"nodes\[0\] is 1024"), ([0] * 1025, "node_count")],
)
def test_bad_nodes(nodes: list[int], message: str) -> None:
    with pytest.raises(NativeError, match=message):
        Workers(1, nodes=nodes)


@pytest.mark.skipif(
    not THP.exists() or "[never]" in THP.read_text(), reason="no transparent huge pages here"
)
def test_huge_pages_are_reported() -> None:
    with Arena(CONFIG) as arena:
        assert arena.memory().huge_page_bytes == 0
        arena.prefault()
        memory = arena.memory()
        assert memory.bytes == 64 << 20
        assert memory.huge_page_bytes is not None
        assert HUGE_PAGE <= memory.huge_page_bytes <= memory.bytes


SMAPS = """\
7f0000000000-7f0000600000 rw-p 00000000 00:00 0
Size:               6144 kB
AnonHugePages:      4096 kB
VmFlags: rd wr mr hg
7f0000600000-7f0000700000 rw-p 00000000 00:00 0 [heap]
AnonHugePages:         0 kB
7f0000800000-7f0001000000 rw-p 00000000 00:00 0
AnonHugePages:      8192 kB
"""


@pytest.mark.parametrize(
    ("start", "size", "huge"),
    [
        (0x7F0000000000, 6 << 20, 4 << 20),
        (0x7F0000600000, 1 << 20, 0),
        (0x7F0000A00000, 2 << 20, 2 << 20),  # within a merged mapping: no more than its own size
        (0x7F0000400000, 6 << 20, 4 << 20),  # the ends of two
        (0x6F0000000000, 1 << 20, 0),
    ],
)
def test_huge_pages_of_a_range(tmp_path: Path, start: int, size: int, huge: int) -> None:
    (tmp_path / "smaps").write_text(SMAPS)
    assert huge_page_bytes(start, size, tmp_path / "smaps") == huge


def test_without_smaps_nothing_is_known(tmp_path: Path) -> None:
    assert huge_page_bytes(0, 1, tmp_path / "none") is None
