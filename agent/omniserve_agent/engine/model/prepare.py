"""From a model URI to a directory with safetensors, configuration and tokenizer.

As a program (`python -m omniserve_agent.engine.model.prepare`) it prints one JSON object a line,
`{"stage", "fraction"}` while it works, then `{"model_dir"}`; on failure `{"error"}` and exit
code 2. With `--inspect` it makes nothing and prints `{"model_dir", "needed_bytes"}`: where the
model would lie, and what the cache needs for it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from omniserve_agent.engine.model.disk import (
    converted_bytes,
    directory_bytes,
    model_files,
    require_space,
)
from omniserve_agent.engine.model.errors import PrepareError
from omniserve_agent.engine.model.hub import HubModel, directory_label, fetch, find
from omniserve_agent.engine.model.locate import NotInHubCacheError, locate, repository_of
from omniserve_agent.engine.model.progress import Progress

LOCK_TIMEOUT_S = 900.0
CONVERSION_VERSION = 1  # raise it when the converter writes something else: old results are left
HASHED_BYTES = 1 << 20
COPY_BYTES = 16 << 20


@dataclass(frozen=True)
class Sources:
    """Where models may come from."""

    allowed_packages: tuple[str, ...] = ()
    model_roots: tuple[Path, ...] = ()
    volumes: Mapping[str, Path] | None = None  # pvc://NAME
    hub: bool = False  # whether hf:// models may be fetched


@dataclass(frozen=True)
class Place:
    """Where a model comes from and where it is used: the same, or made of it in the cache."""

    source: Path | HubModel
    target: Path

    @property
    def needed_bytes(self) -> int:
        """What is missing in the cache."""
        if self.target.is_dir():
            return 0
        if isinstance(self.source, HubModel):
            return self.source.size_bytes
        if self.source.is_dir():
            return directory_bytes(self.source)
        return converted_bytes(self.source)


def prepare(
    uri: str,
    cache_dir: str | Path,
    allowed_packages: Iterable[str] = (),
    model_roots: Sequence[str | Path] = (),
    progress: Progress | None = None,
    lock_timeout_s: float = LOCK_TIMEOUT_S,
    volumes: Mapping[str, Path] | None = None,
    hub: bool = False,
) -> Path:
    """The model's directory: the source itself, or what was made of it in `cache_dir`.

    Converts, copies or fetches once; callers of several processes wait for each other, at most
    `lock_timeout_s`. Raises PrepareError with one line for the user.
    """
    report = progress or _silent
    report("locating", 0.0)
    roots = tuple(Path(root) for root in model_roots)
    sources = Sources(tuple(allowed_packages), roots, volumes, hub)
    place = place_of(uri, cache_dir, sources)
    if not place.target.is_dir():
        _make_once(place, report, lock_timeout_s)
    report("ready", 1.0)
    return place.target


def place_of(uri: str, cache_dir: str | Path, sources: Sources) -> Place:
    """A .gguf file is converted; a directory on a volume, which may be far away, is copied."""
    models = Path(cache_dir) / "models"
    try:
        source = locate(uri, sources.allowed_packages, sources.model_roots, sources.volumes or {})
    except NotInHubCacheError:
        if not sources.hub:
            raise
        return _hub_place(uri, models)
    if source.is_dir() and not uri.startswith("pvc:"):
        return Place(source, source)
    name = source.name if source.is_dir() else source.stem
    return Place(source, models / f"{name}-{_fingerprint(source)}")


def _hub_place(uri: str, models: Path) -> Place:
    """What the hub has; while it cannot be asked, what was fetched last."""
    try:
        model = find(uri)
    except PrepareError:
        repository, revision = repository_of(uri)
        fetched = models.glob(f"{directory_label(repository)}-{(revision or '*')[:12]}")
        newest = max(fetched, key=lambda path: path.stat().st_mtime, default=None)
        if newest is None:
            raise
        return Place(newest, newest)
    return Place(model, models / model.label)


def _silent(stage: str, fraction: float) -> None:
    """Progress that nobody wants."""


def _fingerprint(source: Path) -> str:
    """Of sizes and a file's head: hashing all of a large file would cost more than it tells."""
    if source.is_dir():
        stats = {path.name: path.stat() for path in model_files(source)}
        seen = ":".join(f"{name}:{s.st_size}:{s.st_mtime_ns}" for name, s in stats.items()).encode()
    else:
        with source.open("rb") as file:
            seen = f"{source.stat().st_size}:".encode() + file.read(HASHED_BYTES)
    return hashlib.sha256(f"{CONVERSION_VERSION}:".encode() + seen).hexdigest()[:12]


def _make_once(place: Place, report: Progress, lock_timeout_s: float) -> None:
    target = place.target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        report("waiting for the cache", 0.0)
        with FileLock(f"{target}.lock", timeout=lock_timeout_s):
            if not target.is_dir():
                _make(place, report)
    except Timeout:
        raise PrepareError(
            f"another process has held {target}.lock for {lock_timeout_s:.0f} s; "
            "wait for it, or end it if it hangs"
        ) from None
    except OSError as error:
        raise PrepareError(f"cannot write {target}: {error}; choose another --cache-dir") from error


def _make(place: Place, report: Progress) -> None:
    """Under the lock. Readers see the whole directory or none: it is renamed into place."""
    source, target = place.source, place.target
    partial_prefix = f".{target.name}.partial-"
    for left_over in target.parent.glob(f"{partial_prefix}*"):
        shutil.rmtree(left_over, ignore_errors=True)
    require_space(f"making {target.name}", place.needed_bytes, target.parent)
    partial = Path(tempfile.mkdtemp(prefix=partial_prefix, dir=target.parent))
    try:
        _fill(source, partial, report)
        partial.chmod(0o755)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _fill(source: Path | HubModel, directory: Path, report: Progress) -> None:
    """The model into an empty directory."""
    if isinstance(source, HubModel):
        fetch(source, directory, report)
    elif source.is_dir():
        _copy(source, directory, report)
    else:
        from omniserve_agent.engine.model.gguf_conversion import convert_gguf

        convert_gguf(source, directory, report)


def _copy(source: Path, directory: Path, report: Progress) -> None:
    """The files that a loader reads."""
    total_bytes, copied_bytes = max(1, directory_bytes(source)), 0
    for path in model_files(source):
        with path.open("rb") as reader, (directory / path.name).open("wb") as writer:
            while chunk := reader.read(COPY_BYTES):
                writer.write(chunk)
                copied_bytes += len(chunk)
                report("copying", min(1.0, copied_bytes / total_bytes))


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="prepare", description="Make a model ready to load.")
    parser.add_argument("--uri", required=True, help="hf://, file://, pvc:// or python:// URI")
    parser.add_argument("--cache-dir", required=True, type=Path)
    parser.add_argument("--allow-package", action="append", default=[], metavar="NAME")
    parser.add_argument("--model-root", action="append", default=[], type=Path, metavar="DIRECTORY")
    parser.add_argument("--model-volume", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--hub", action="store_true", help="hf:// models may be fetched")
    parser.add_argument("--inspect", action="store_true", help="make nothing, say what it takes")
    return parser.parse_args(arguments)


def _print_line(**fields: object) -> None:
    print(json.dumps(fields), flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; returns its exit code."""
    options = _arguments(arguments)
    # The libraries' own bars and advice would only hide our lines.
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        _print_line(**(_inspected(options) if options.inspect else _prepared(options)))
    except PrepareError as error:
        _print_line(error=" ".join(str(error).split()))
        return 2
    return 0


def _inspected(options: argparse.Namespace) -> dict[str, object]:
    roots = tuple(options.model_root)
    sources = Sources(tuple(options.allow_package), roots, _volumes(options), options.hub)
    place = place_of(options.uri, options.cache_dir, sources)
    return {"model_dir": str(place.target), "needed_bytes": place.needed_bytes}


def _prepared(options: argparse.Namespace) -> dict[str, object]:
    model_dir = prepare(
        options.uri,
        options.cache_dir,
        options.allow_package,
        options.model_root,
        lambda stage, fraction: _print_line(stage=stage, fraction=fraction),
        volumes=_volumes(options),
        hub=options.hub,
    )
    return {"model_dir": str(model_dir)}


def _volumes(options: argparse.Namespace) -> dict[str, Path]:
    pairs = (text.partition("=") for text in options.model_volume)
    return {name: Path(path) for name, _, path in pairs}


if __name__ == "__main__":
    sys.exit(main())
