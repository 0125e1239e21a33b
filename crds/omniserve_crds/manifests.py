"""Manifests from files, as the standalone agent reads them: every mistake is one clear line."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from omniserve_crds.group import API_VERSION, LLM_SERVICE_KIND
from omniserve_crds.llmservice import LLMService
from omniserve_crds.violations import violations

MAX_FILE_BYTES = 4 << 20
MAX_SERVICES = 256


class ManifestError(Exception):
    """A manifest cannot be used; `line` names the file, the object, the field and the remedy."""

    def __init__(self, line: str) -> None:
        super().__init__(line)
        self.line = line


def load_manifests(paths: Iterable[Path | str]) -> list[LLMService]:
    """Every LLMService in the files, in order; ManifestError at the first mistake."""
    found = [(path, service) for path in paths for service in _services(Path(path))]
    if not found:
        raise ManifestError(f"no {LLM_SERVICE_KIND} found; name files that hold at least one")
    if len(found) > MAX_SERVICES:
        raise ManifestError(f"{len(found)} services; one agent serves at most {MAX_SERVICES}")
    _refuse_duplicates(found)
    return [service for _, service in found]


def _services(path: Path) -> Iterator[LLMService]:
    for document in _documents(path):
        if document is not None:
            yield from _from_document(path, document)


def _documents(path: Path) -> list[Any]:
    text = _text(path)
    try:
        return list(yaml.load_all(text, Loader=_UniqueKeyLoader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise ManifestError(f"{path}{place}: not valid YAML: {error.problem}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ManifestError(f"{path}: not valid YAML: {reason}") from error


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError as error:
        raise ManifestError(f"{path}: no such file; name a YAML file of LLMServices") from error
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read: {error.strerror}") from error
    if len(content) > MAX_FILE_BYTES:
        raise ManifestError(f"{path}: longer than {MAX_FILE_BYTES} bytes; split it")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from error


def _from_document(path: Path, document: object) -> Iterator[LLMService]:
    if not isinstance(document, dict):
        shown = type(document).__name__
        raise ManifestError(f"{path}: a document is a {shown}; write a mapping with kind and spec")
    if document.get("kind") == "List" and document.get("apiVersion") == "v1":
        yield from _from_list(path, document.get("items"))
    else:
        yield _service(path, document)


def _from_list(path: Path, items: object) -> Iterator[LLMService]:
    if not isinstance(items, list):
        raise ManifestError(f"{path}: List: items: is {items!r}; write a list of objects")
    for item in items:
        if not isinstance(item, dict):
            raise ManifestError(f"{path}: List: items: an entry is {item!r}; write a mapping")
        yield _service(path, item)


def _service(path: Path, document: dict[Any, Any]) -> LLMService:
    kind, version = document.get("kind"), document.get("apiVersion")
    if kind != LLM_SERVICE_KIND:
        raise ManifestError(f"{path}: kind: is {kind!r}; write {LLM_SERVICE_KIND}")
    if version != API_VERSION:
        raise ManifestError(
            f"{path}: {_name_in(document)}: apiVersion: is {version!r}; write {API_VERSION}"
        )
    try:
        return LLMService.model_validate(document)
    except ValidationError as error:
        first, *others = violations(LLMService, error)
        more = f" (and {len(others)} more)" if others else ""
        raise ManifestError(f"{path}: {_name_in(document)}: {first}{more}") from error


def _name_in(document: dict[Any, Any]) -> str:
    metadata = document.get("metadata")
    if not isinstance(metadata, dict) or "name" not in metadata:
        return f"{LLM_SERVICE_KIND} without a name"
    return f"{LLM_SERVICE_KIND} {metadata.get('namespace', 'default')}/{metadata['name']}"


def _refuse_duplicates(found: list[tuple[Path | str, LLMService]]) -> None:
    keys: dict[str, Path | str] = {}
    names: dict[str, str] = {}
    for path, service in found:
        where = f"{path}: {LLM_SERVICE_KIND} {service.key}"
        if service.key in keys:
            raise ManifestError(f"{where}: already defined in {keys[service.key]}; rename one")
        if service.served_name in names:
            raise ManifestError(
                f"{where}: spec.model.servedName: is {service.served_name!r}, which "
                f"{names[service.served_name]} already uses; give it another"
            )
        keys[service.key] = path
        names[service.served_name] = service.key


class _UniqueKeyLoader(yaml.SafeLoader):
    """Refuses a key written twice, which plain YAML resolves silently to the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key!r} is written twice; keep one", key_node.start_mark
                )
            if isinstance(key, Hashable):
                seen.add(key)
        return super().construct_mapping(node, deep=deep)
