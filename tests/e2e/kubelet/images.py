"""Which local program stands for which container image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from e2e.harness.api import Object
from e2e.kubelet.environment import expand


@dataclass(frozen=True)
class Images:
    """Programs come from the venv of `python`; `overrides` are folders searched before it.

    `entrypoints` maps a part of an image's name to the command the image would run by itself.
    """

    python: Path
    entrypoints: Mapping[str, tuple[str, ...]]
    overrides: tuple[Path, ...] = field(default=())

    @property
    def path(self) -> str:
        """PATH inside every container."""
        folders = [*self.overrides, self.python.parent, "/usr/local/bin", "/usr/bin", "/bin"]
        return ":".join(map(str, [*folders, "/usr/sbin", "/sbin"]))

    def argv(self, container: Object, env: Mapping[str, str]) -> list[str]:
        """`command` and `args`, $(NAME) expanded; the image's own command where none is given."""
        command = [expand(part, env) for part in container.get("command") or []]
        args = [expand(part, env) for part in container.get("args") or []]
        return [*(command or self._entrypoint(container["image"])), *args]

    def _entrypoint(self, image: str) -> tuple[str, ...]:
        for part, command in self.entrypoints.items():
            if part in image:
                return command
        known = ", ".join(self.entrypoints)
        raise ValueError(f"image {image!r} has no command here; give one, or use one of {known}")
