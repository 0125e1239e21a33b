"""Where a model's weights come from: the four forms of `spec.model.uri`."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath

from omniserve_crds.rules import Rule

FORMS = "hf://org/name, file:///path, pvc://NAME/path or python://package/resource"

_HUB_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"
_HUB = re.compile(rf"(?P<organization>{_HUB_PART})/(?P<name>{_HUB_PART})")
_VOLUME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_PACKAGE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*")
_UNPRINTABLE = re.compile(r"[\x00-\x20\x7f?#%\\]")


@dataclass(frozen=True)
class HubUri:
    """`hf://org/name`: a repository on a model hub."""

    organization: str
    name: str

    def __str__(self) -> str:
        return f"hf://{self.organization}/{self.name}"


@dataclass(frozen=True)
class FileUri:
    """`file:///path`: a safetensors directory or one `.gguf` file on the node."""

    path: PurePosixPath

    def __str__(self) -> str:
        return f"file://{self.path}"


@dataclass(frozen=True)
class VolumeUri:
    """`pvc://NAME/path`: a path inside a volume that the chart mounts into the agents."""

    volume: str
    path: PurePosixPath

    def __str__(self) -> str:
        return f"pvc://{self.volume}/{self.path}"


@dataclass(frozen=True)
class PackageUri:
    """`python://package/resource`: a file inside an installed Python package."""

    package: str
    resource: PurePosixPath

    def __str__(self) -> str:
        return f"python://{self.package}/{self.resource}"


ModelUri = HubUri | FileUri | VolumeUri | PackageUri


def parse_model_uri(text: str) -> ModelUri:
    """The URI's parts; ValueError says what is wrong with which value and what would be right."""
    parsers: dict[str, Callable[[str, str], ModelUri]] = {
        "hf": _hub,
        "file": _file,
        "pvc": _volume,
        "python": _package,
    }
    scheme, separator, rest = text.partition("://")
    parse = parsers.get(scheme)
    if not separator or parse is None:
        raise ValueError(f"is {text!r}; write {FORMS}")
    if _UNPRINTABLE.search(rest):
        raise ValueError(f"is {text!r}; write it without spaces, '?', '#', '%' and '\\'")
    return parse(text, rest)


def _hub(text: str, rest: str) -> HubUri:
    match = _HUB.fullmatch(rest)
    if match is None:
        raise ValueError(f"is {text!r}; write hf://org/name, with exactly two parts")
    return HubUri(match["organization"], match["name"])


def _file(text: str, rest: str) -> FileUri:
    if not rest.startswith("/") or rest.startswith("//"):
        raise ValueError(f"is {text!r}; write an absolute path: file:///path")
    return FileUri(PurePosixPath("/") / _inner_path(text, rest[1:]))


def _volume(text: str, rest: str) -> VolumeUri:
    volume, _, path = rest.partition("/")
    if not _VOLUME.fullmatch(volume):
        raise ValueError(f"is {text!r}; write pvc://NAME/path, NAME from agent.modelVolumes")
    return VolumeUri(volume, _inner_path(text, path))


def _package(text: str, rest: str) -> PackageUri:
    package, _, resource = rest.partition("/")
    if not _PACKAGE.fullmatch(package):
        raise ValueError(
            f"is {text!r}; write python://package/resource with an importable package name"
        )
    return PackageUri(package, _inner_path(text, resource))


def _inner_path(text: str, path: str) -> PurePosixPath:
    """A relative path that stays where it starts: no empty, `.` or `..` part."""
    parts = path.removesuffix("/").split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"is {text!r}; write a path without empty, '.' or '..' parts")
    return PurePosixPath(*parts)


# ---- the same in CEL ---------------------------------------------------------------------------

_HUB_TEXT = r"[A-Za-z0-9]([A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"
_PACKAGE_TEXT = r"[A-Za-z_][A-Za-z0-9_]*([.][A-Za-z_][A-Za-z0-9_]*)*"
_VOLUME_TEXT = "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_PART = "([^/.]|[.][^/.]|[.][.][^/])[^/]*"  # neither empty nor `.` nor `..`


def _either(prefix: str, pattern: str) -> str:
    """Holds for other schemes, and where the whole URI matches."""
    return f"!self.startsWith('{prefix}') || self.matches('{pattern}')"


URI_RULES = (
    Rule(
        "",
        " || ".join(
            f"self.startsWith('{scheme}://')" for scheme in ("hf", "file", "pvc", "python")
        ),
        f"write {FORMS}",
    ),
    Rule(
        "",
        # \x5c is the backslash: no escape of an escape has to survive YAML, CEL and RE2.
        r"!self.matches('[\\x00-\\x20\\x7f?#%\\x5c]')",
        "write it without spaces, '?', '#', '%' and backslashes",
    ),
    Rule(
        "",
        _either("hf://", f"^hf://{_HUB_TEXT}/{_HUB_TEXT}$"),
        "write hf://org/name, with exactly two parts",
    ),
    Rule("", _either("file://", "^file:///([^/]|$)"), "write an absolute path: file:///path"),
    Rule(
        "",
        _either("pvc://", f"^pvc://{_VOLUME_TEXT}(/|$)"),
        "write pvc://NAME/path, NAME from agent.modelVolumes",
    ),
    Rule(
        "",
        _either("python://", f"^python://{_PACKAGE_TEXT}(/|$)"),
        "write python://package/resource with an importable package name",
    ),
    Rule(
        "",
        f"self.startsWith('hf://') || self.matches('^[a-z]*://[^/]*(/{_PART})+/?$')",
        "write a path without empty, '.' or '..' parts",
    ),
)
