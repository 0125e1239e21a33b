"""API keys from files: `SECRETS_DIR/SECRET_NAME/*`, one key per line, as a mounted Secret."""

from __future__ import annotations

from pathlib import Path

from omniserve_agent.node.errors import NodeError
from omniserve_crds.llmservice import LLMService

_LARGEST_FILE_BYTES = 1 << 20


def api_keys(service: LLMService, secrets_dir: Path | None) -> frozenset[str]:
    """The bearer keys of `service`; empty: it is open. NodeError where named keys are missing."""
    if service.spec.auth is None:
        return frozenset()
    name = service.spec.auth.api_keys_secret_ref.name
    what = f"LLMService {service.key}: spec.auth.apiKeysSecretRef: {name!r}"
    if secrets_dir is None:
        raise NodeError(f"{what}: no --secrets-dir was given; name one that holds {name}/")
    folder = secrets_dir / name
    try:
        files = sorted(path for path in folder.iterdir() if path.is_file())
        keys = frozenset(key for path in files for key in _keys(path))
    except OSError as error:
        problem = f"{error.filename or folder} cannot be read: {error.strerror}"
        raise NodeError(f"{what}: {problem}; put files with one key per line there") from error
    except UnicodeDecodeError as error:
        raise NodeError(f"{what}: a file in {folder} is not UTF-8; save it as UTF-8") from error
    if not keys:
        raise NodeError(f"{what}: no key in {folder}; put files with one key per line there")
    return keys


def _keys(path: Path) -> list[str]:
    with path.open("rb") as file:
        text = file.read(_LARGEST_FILE_BYTES).decode()
    return [line.strip() for line in text.splitlines() if line.strip()]
