"""Finished cells on disk, keyed by what they measured: a restart goes on where it stopped."""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from colocation_client import CellFigures

Key = dict[str, Any]


class _Line(msgspec.Struct):
    key: Key
    figures: CellFigures


@dataclass
class Store:
    """Appends to one file; a line that was cut short is left out."""

    path: Path

    def __post_init__(self) -> None:
        self._discarded_path = self.path.with_suffix(".discarded.jsonl")
        self._cells = {_name(line.key): line.figures for line in _read(self.path)}
        self._discarded = Counter(_name(line.key) for line in _read(self._discarded_path))

    def find(self, key: Key) -> CellFigures | None:
        """What was measured for this key."""
        return self._cells.get(_name(key))

    def add(self, key: Key, figures: CellFigures) -> None:
        """Keep it, on disk first."""
        _append(self.path, key, figures)
        self._cells[_name(key)] = figures

    def discard(self, key: Key, figures: CellFigures) -> None:
        """Not to be counted, and not lost: into a file beside the cells."""
        _append(self._discarded_path, key, figures)
        self._discarded[_name(key)] += 1

    def discarded(self, key: Key) -> int:
        """How often this cell was measured in vain."""
        return self._discarded[_name(key)]


def _read(path: Path) -> Iterator[_Line]:
    for line in path.read_bytes().splitlines() if path.exists() else ():
        with contextlib.suppress(msgspec.MsgspecError):
            yield msgspec.json.decode(line, type=_Line)


def _append(path: Path, key: Key, figures: CellFigures) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.write(msgspec.json.encode(_Line(key, figures)) + b"\n")


def _name(key: Key) -> str:
    return msgspec.json.encode(key, order="sorted").decode()


def digest(*parts: object) -> str:
    """A short name of a configuration."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]
