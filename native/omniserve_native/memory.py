"""Where an arena's pages lie, and of what size they are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

_RANGE = re.compile(r"([0-9a-f]+)-([0-9a-f]+) ")


class Policy(IntEnum):
    """What the system has been asked for."""

    FIRST_TOUCH = 0  # a page comes from the node of the thread that touches it first
    PREFERRED = 1  # from one node, while it has any
    INTERLEAVED = 2  # from each of several nodes in turn


@dataclass(frozen=True, slots=True)
class ArenaMemory:
    """An arena's tiles; `refused`: the errno with which the system did not take a policy, or 0."""

    bytes: int
    huge_page_bytes: int | None  # of them on transparent huge pages; None: the kernel tells nothing
    policy: Policy
    refused: int


def huge_page_bytes(start: int, size: int, smaps: Path = Path("/proc/self/smaps")) -> int | None:
    """Bytes of [start, start + size) on transparent huge pages. A mapping that reaches further,
    since the kernel merges neighbours, may count some of theirs."""
    try:
        with smaps.open() as lines:
            return sum(
                min(huge, min(end, start + size) - max(low, start))
                for low, end, huge in _mappings(lines)
                if low < start + size and start < end
            )
    except OSError:
        return None


def _mappings(lines: Iterator[str]) -> Iterator[tuple[int, int, int]]:
    """First address, end and bytes on huge pages of each mapping."""
    low = end = 0
    for line in lines:
        if found := _RANGE.match(line):
            low, end = (int(text, 16) for text in found.groups())
        elif line.startswith("AnonHugePages:"):
            yield low, end, 1024 * int(line.split()[1])
