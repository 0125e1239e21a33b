"""Marks of what is in use in a cache that several agents of one node may share.

A pin is a shared lock on a file beside the model, so that it ends with its process, however that
dies; whoever evicts needs the lock for itself.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


class Pins:
    """The models that this process uses, each counted."""

    def __init__(self) -> None:
        self._held: dict[Path, tuple[int, int]] = {}  # descriptor and count

    def hold(self, model_dir: Path) -> bool:
        """Pin a model; False while it is being evicted."""
        held = self._held.get(model_dir)
        if held is not None:
            self._held[model_dir] = (held[0], held[1] + 1)
            return True
        descriptor = _locked(model_dir, fcntl.LOCK_SH)
        if descriptor is None:
            return False
        self._held[model_dir] = (descriptor, 1)
        return True

    def release(self, model_dir: Path) -> None:
        """Take back one `hold`."""
        descriptor, count = self._held.pop(model_dir)
        if count > 1:
            self._held[model_dir] = (descriptor, count - 1)
        else:
            os.close(descriptor)

    def holds(self, model_dir: Path) -> bool:
        """Whether this process uses it."""
        return model_dir in self._held


@contextlib.contextmanager
def alone(model_dir: Path) -> Iterator[bool]:
    """Whether nobody uses the model; nobody can begin to while the block runs."""
    descriptor = _locked(model_dir, fcntl.LOCK_EX)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _locked(model_dir: Path, kind: int) -> int | None:
    """A descriptor with the lock, or None where another's is in the way."""
    path = model_dir.with_name(f".{model_dir.name}.use")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
