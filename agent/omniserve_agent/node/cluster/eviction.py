"""Which cached models go when another needs their room. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class CachedModel:
    """A prepared model on disk."""

    name: str
    size_bytes: int
    used_s: float  # when it was last used, seconds since the epoch
    in_use: bool = False


@dataclass(frozen=True)
class Eviction:
    """What goes, in order, and what is still missing then; nothing goes for a model that would
    not fit all the same."""

    names: tuple[str, ...] = ()
    missing_bytes: int = 0


def evict(models: Iterable[CachedModel], needed_bytes: int, free_bytes: int) -> Eviction:
    """The least recently used ones, never one in use, and no more than needed."""
    room_bytes, names = free_bytes, []
    for model in sorted(models, key=lambda model: (model.used_s, model.name)):
        if room_bytes >= needed_bytes:
            break
        if not model.in_use:
            room_bytes += model.size_bytes
            names.append(model.name)
    if room_bytes < needed_bytes:
        return Eviction((), needed_bytes - room_bytes)
    return Eviction(tuple(names))
