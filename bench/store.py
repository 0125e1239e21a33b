"""Finished runs on disk, keyed by what they measured: a restart goes on where it stopped."""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec

Key = dict[str, Any]
Figures = TypeVar("Figures")


class _Line(msgspec.Struct, Generic[Figures]):
    key: Key
    figures: Figures


class Store(Generic[Figures]):
    """Appends to one file; a line that was cut short is left out."""

    def __init__(self, path: Path, kind: type[Figures]) -> None:
        self._path, self._discarded_path = path, path.with_suffix(".discarded.jsonl")
        self._decoder = msgspec.json.Decoder(_Line[kind])  # type: ignore[valid-type]
        self._found = {_name(line.key): line.figures for line in self._read(path)}
        self._discarded = Counter(_name(line.key) for line in self._read(self._discarded_path))

    def find(self, key: Key) -> Figures | None:
        """What was measured for this key."""
        return self._found.get(_name(key))

    def add(self, key: Key, figures: Figures) -> None:
        """Keep it, on disk first."""
        self._append(self._path, key, figures)
        self._found[_name(key)] = figures

    def discard(self, key: Key, figures: Figures) -> None:
        """Not to be counted, and not lost: into a file beside the kept ones."""
        self._append(self._discarded_path, key, figures)
        self._discarded[_name(key)] += 1

    def discarded(self, key: Key) -> int:
        """How often this key was measured in vain."""
        return self._discarded[_name(key)]

    def _read(self, path: Path) -> list[_Line[Figures]]:
        lines = []
        for line in path.read_bytes().splitlines() if path.exists() else ():
            with contextlib.suppress(msgspec.MsgspecError):
                lines.append(self._decoder.decode(line))
        return lines

    def _append(self, path: Path, key: Key, figures: Figures) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(b"\n" + msgspec.json.encode(_Line(key, figures)))  # the last may be torn


def _name(key: Key) -> str:
    return msgspec.json.encode(key, order="sorted").decode()


def digest(*parts: object) -> str:
    """A short name of a configuration."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def digest_of_files(paths: Iterable[Path]) -> str:
    """A short name of what these files, and those under these folders, hold."""
    files = sorted(file for path in paths for file in ([path] if path.is_file() else _under(path)))
    return digest([(file.name, hashlib.sha256(file.read_bytes()).hexdigest()) for file in files])


def _under(folder: Path) -> list[Path]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return [file for file in files if "__pycache__" not in file.parts]
