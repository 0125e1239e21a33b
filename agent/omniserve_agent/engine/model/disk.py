"""How many bytes a model takes on disk, and whether they are there. No torch."""

from __future__ import annotations

import shutil
from pathlib import Path

from omniserve_agent.engine.model.errors import PrepareError
from omniserve_agent.engine.model.locate import MODEL_FILES

BYTES_PER_WEIGHT = 2
GGUF_MAGIC = b"GGUF"
TOKENIZER_BYTES = 32 << 20  # generous: vocabularies of 256k tokens stay below


def converted_bytes(gguf: Path) -> int:
    """What `gguf` takes once converted to bfloat16 safetensors."""
    from gguf import GGUFReader

    _require_gguf(gguf)
    try:
        weights = sum(int(tensor.n_elements) for tensor in GGUFReader(gguf).tensors)
    except (ValueError, IndexError, KeyError, OSError) as error:  # in numpy's words, mostly
        raise PrepareError(
            f"{gguf} begins as a GGUF file but cannot be read to its end; use a whole one of "
            "version 2 or 3, perhaps by fetching it again"
        ) from error
    return weights * BYTES_PER_WEIGHT + TOKENIZER_BYTES


def _require_gguf(path: Path) -> None:
    try:
        with path.open("rb") as file:
            found = file.read(len(GGUF_MAGIC))
    except OSError as error:
        raise PrepareError(f"{path} cannot be read: {error.strerror}") from error
    if found != GGUF_MAGIC:
        raise PrepareError(
            f"{path} is not a GGUF file: it begins with {found!r} instead of {GGUF_MAGIC!r}; name "
            "a GGUF file of version 2 or 3, or a directory of safetensors"
        )


def model_files(directory: Path) -> list[Path]:
    """The files a loader reads, each once."""
    found = {path for pattern in MODEL_FILES for path in directory.glob(pattern) if path.is_file()}
    return sorted(found)


def directory_bytes(directory: Path) -> int:
    """What those files take."""
    return sum(path.stat().st_size for path in model_files(directory))


def require_space(what: str, needed_bytes: int, directory: Path) -> None:
    """Raise PrepareError unless `directory`'s disk has room."""
    free_bytes = shutil.disk_usage(directory).free
    if free_bytes < needed_bytes:
        raise PrepareError(
            f"{what} needs {needed_bytes / 1e9:.2f} GB in {directory}, where "
            f"{free_bytes / 1e9:.2f} GB are free; free {(needed_bytes - free_bytes) / 1e9:.2f} GB "
            "or choose another --cache-dir"
        )
