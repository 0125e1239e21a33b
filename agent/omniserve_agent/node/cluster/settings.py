"""What `omniserve-agent node` was told."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from omniserve_agent.settings import SettingError, Settings, directory


@dataclass(frozen=True, kw_only=True)
class NodeSettings:
    """The node's own settings beside those of its engines; `engine.host` is the pod's address."""

    node_name: str
    namespace: str
    engine: Settings
    template: str = ""
    admin_port: int = 8081
    cache_bytes: int | None = None  # of all cached models together; None: what the disk has
    model_volumes: Mapping[str, Path] = field(default_factory=dict)
    tls_dir: Path | None = None  # tls.crt and tls.key of the services' ports; None: plain HTTP


@dataclass(frozen=True)
class ModelVolume:
    """A mounted volume that pvc:// URIs name."""

    name: str
    path: Path


def model_volume(text: str) -> ModelVolume:
    """`NAME=PATH`, PATH an existing directory."""
    name, _, path = text.partition("=")
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", name) or not path:
        raise SettingError(f"{text!r} is not NAME=PATH; use one such as models=/volumes/models")
    return ModelVolume(name, directory(path))


def object_name(text: str) -> str:
    """The name of a Kubernetes object."""
    if not re.fullmatch(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", text):
        raise SettingError(
            f"{text!r} is not a Kubernetes name; use lower-case letters, digits, '-' and '.'"
        )
    return text


def label_value(text: str) -> str:
    """The value of a label."""
    if not re.fullmatch(r"([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?", text):
        raise SettingError(f"{text!r} is not a label's value; give controller-revision-hash")
    return text
