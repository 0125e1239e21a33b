"""From a model URI to a directory with safetensors, configuration and tokenizer.

As a program (`python -m omniserve_agent.engine.model.prepare`) it prints one JSON object a line,
`{"stage", "fraction"}` while it works, then `{"model_dir"}`; on failure `{"error"}` and exit
code 2.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from omniserve_agent.engine.model.errors import PrepareError
from omniserve_agent.engine.model.locate import locate
from omniserve_agent.engine.model.progress import Progress

LOCK_TIMEOUT_S = 900.0
CONVERSION_VERSION = 1  # raise it when the converter writes something else: old results are left
HASHED_BYTES = 1 << 20


def prepare(
    uri: str,
    cache_dir: str | Path,
    allowed_packages: Iterable[str] = (),
    model_roots: Sequence[str | Path] = (),
    progress: Progress | None = None,
    lock_timeout_s: float = LOCK_TIMEOUT_S,
) -> Path:
    """The model's directory: the source itself, or what a .gguf was converted to in `cache_dir`.

    Converts once; callers of several processes wait for each other, at most `lock_timeout_s`.
    Raises PrepareError with one line for the user.
    """
    report = progress or _silent
    report("locating", 0.0)
    source = locate(uri, allowed_packages, [Path(root) for root in model_roots])
    if source.is_dir():
        report("ready", 1.0)
        return source
    target = Path(cache_dir) / "models" / f"{source.stem}-{_fingerprint(source)}"
    if not target.is_dir():
        _convert_once(source, target, report, lock_timeout_s)
    report("ready", 1.0)
    return target


def _silent(stage: str, fraction: float) -> None:
    """Progress that nobody wants."""


def _fingerprint(source: Path) -> str:
    """Of size and head: hashing all of a large file would cost more than it tells."""
    with source.open("rb") as file:
        head = file.read(HASHED_BYTES)
    label = f"{CONVERSION_VERSION}:{source.stat().st_size}:".encode()
    return hashlib.sha256(label + head).hexdigest()[:12]


def _convert_once(source: Path, target: Path, report: Progress, lock_timeout_s: float) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        report("waiting for the cache", 0.0)
        with FileLock(f"{target}.lock", timeout=lock_timeout_s):
            if not target.is_dir():
                _convert(source, target, report)
    except Timeout:
        raise PrepareError(
            f"another process has held {target}.lock for {lock_timeout_s:.0f} s; "
            "wait for it, or end it if it hangs"
        ) from None
    except OSError as error:
        raise PrepareError(f"cannot write {target}: {error}; choose another --cache-dir") from error


def _convert(source: Path, target: Path, report: Progress) -> None:
    """Under the lock. Readers see the whole directory or none: it is renamed into place."""
    from omniserve_agent.engine.model.gguf_conversion import convert_gguf, require_space

    partial_prefix = f".{target.name}.partial-"
    for left_over in target.parent.glob(f"{partial_prefix}*"):
        shutil.rmtree(left_over, ignore_errors=True)
    require_space(source, target.parent)
    partial = Path(tempfile.mkdtemp(prefix=partial_prefix, dir=target.parent))
    try:
        convert_gguf(source, partial, report)
        partial.chmod(0o755)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="prepare", description="Make a model ready to load.")
    parser.add_argument("--uri", required=True, help="hf://, file://, pvc:// or python:// URI")
    parser.add_argument("--cache-dir", required=True, type=Path)
    parser.add_argument("--allow-package", action="append", default=[], metavar="NAME")
    parser.add_argument("--model-root", action="append", default=[], type=Path, metavar="DIRECTORY")
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
        model_dir = prepare(
            options.uri,
            options.cache_dir,
            options.allow_package,
            options.model_root,
            lambda stage, fraction: _print_line(stage=stage, fraction=fraction),
        )
    except PrepareError as error:
        _print_line(error=" ".join(str(error).split()))
        return 2
    _print_line(model_dir=str(model_dir))
    return 0


if __name__ == "__main__":
    sys.exit(main())
