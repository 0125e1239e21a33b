"""Finished cells on disk, keyed by what they measured: a restart goes on where it stopped."""

from __future__ import annotations

import hashlib
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
        self._cells: dict[str, CellFigures] = {}
        if self.path.exists():
            for line in self.path.read_bytes().splitlines():
                self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            found = msgspec.json.decode(line, type=_Line)
        except msgspec.MsgspecError:
            return
        self._cells[_name(found.key)] = found.figures

    def find(self, key: Key) -> CellFigures | None:
        """What was measured for this key."""
        return self._cells.get(_name(key))

    def add(self, key: Key, figures: CellFigures) -> None:
        """Keep it, on disk first."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.write(msgspec.json.encode(_Line(key, figures)) + b"\n")
        self._cells[_name(key)] = figures


def _name(key: Key) -> str:
    return msgspec.json.encode(key, order="sorted").decode()


def digest(*parts: object) -> str:
    """A short name of a configuration."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]
