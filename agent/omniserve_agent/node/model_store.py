"""Models made ready on disk by a child process that loads torch, so that this one need not."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from omniserve_agent.node.errors import NodeError
from omniserve_agent.node.process import end, ended_how, spawn

PREPARE_COMMAND = (sys.executable, "-m", "omniserve_agent.engine.model.prepare")
_STDERR_TAIL_BYTES = 4096
_DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

Progress = Callable[[str, float], None]


class _Line(msgspec.Struct):
    """One line of the child: a step, or the end."""

    stage: str = ""
    fraction: float = 0.0
    model_dir: str | None = None
    needed_bytes: int = 0
    error: str | None = None


@dataclass(frozen=True)
class ModelPlace:
    """Where a model lies or will lie, and the bytes that the cache lacks for it."""

    model_dir: Path
    needed_bytes: int


@dataclass(frozen=True)
class ModelStore:
    """Where models come from and are kept."""

    cache_dir: Path
    allowed_packages: Sequence[str] = ()
    model_roots: Sequence[Path] = ()
    volumes: Mapping[str, Path] = field(default_factory=dict)  # pvc://NAME
    hub: bool = False  # whether hf:// models may be fetched
    timeout_s: float = 3600.0
    command: Sequence[str] = PREPARE_COMMAND

    async def prepare(self, uri: str, progress: Progress, token: str | None = None) -> Path:
        """The directory of `uri`'s safetensors, configuration and tokenizer.

        Raises NodeError with the child's one line, or when it takes longer than `timeout_s`.
        """
        line = await self._run(uri, self._program(uri), progress, token)
        return Path(line.model_dir or "")

    async def inspect(self, uri: str, token: str | None = None) -> ModelPlace:
        """What preparing would take; NodeError where it cannot be done. `token`: for a hub."""
        line = await self._run(uri, [*self._program(uri), "--inspect"], _silent, token)
        return ModelPlace(Path(line.model_dir or ""), line.needed_bytes)

    async def _run(
        self, uri: str, program: Sequence[str], progress: Progress, token: str | None
    ) -> _Line:
        """The child's last line, which has a directory; else NodeError."""
        environment = self._environment(token)
        process = await spawn(program, stdout=PIPE, stderr=PIPE, environment=environment)
        try:
            async with asyncio.timeout(self.timeout_s):
                last, noise = await asyncio.gather(_last_line(process, progress), _tail(process))
                returncode = await process.wait()
        except TimeoutError as error:
            raise NodeError(f"model {uri}: not ready after {self.timeout_s:g} s") from error
        finally:
            await end(process)
        if returncode == 0 and last.model_dir is not None:
            return last
        reason = last.error or f"preparing it {ended_how(returncode)}: {noise or 'no message'}"
        raise NodeError(reason if uri in reason else f"model {uri}: {reason}")

    def _environment(self, token: str | None) -> dict[str, str]:
        """The token is no argument, for those are open to every eye on the machine. In a cluster
        nothing but the cache can be written."""
        home = {"HF_HOME": str(self.cache_dir / "huggingface")} if self.hub else {}
        return {**home, **os.environ, **({"HF_TOKEN": token} if token else {})}

    def _program(self, uri: str) -> list[str]:
        program = [*self.command, "--uri", uri, "--cache-dir", str(self.cache_dir)]
        for package in self.allowed_packages:
            program += ["--allow-package", package]
        for root in self.model_roots:
            program += ["--model-root", str(root)]
        for name, path in self.volumes.items():
            program += ["--model-volume", f"{name}={path}"]
        if self.hub:
            program.append("--hub")
        return program


def _silent(stage: str, fraction: float) -> None:
    """Progress that nobody wants."""


async def _last_line(process: Process, progress: Progress) -> _Line:
    """Report steps until the child's output ends; its last word."""
    last = _Line()
    if process.stdout is None:
        return last
    async for text in process.stdout:
        with contextlib.suppress(msgspec.DecodeError):  # libraries print to stdout too
            line = msgspec.json.decode(text, type=_Line)
            if line.stage:
                progress(line.stage, line.fraction)
            if line.model_dir is not None or line.error is not None:
                last = line
    return last


async def _tail(process: Process) -> str:
    """The last line the child wrote to stderr."""
    tail = b""
    while process.stderr is not None and (chunk := await process.stderr.read(_STDERR_TAIL_BYTES)):
        tail = (tail + chunk)[-_STDERR_TAIL_BYTES:]
    return tail.decode(errors="replace").strip().rpartition("\n")[2].strip()


def model_bytes(model_dir: Path, dtype: str) -> int:
    """Bytes of the weights once loaded as `dtype` (`auto`: as stored)."""
    stored = sum(path.stat().st_size for path in model_dir.glob("*.safetensors"))
    config = _configuration(model_dir)
    stored_dtype = str(config.get("dtype") or config.get("torch_dtype") or "")
    if dtype not in _DTYPE_BYTES or stored_dtype not in _DTYPE_BYTES:
        return stored
    return stored * _DTYPE_BYTES[dtype] // _DTYPE_BYTES[stored_dtype]


def model_layers(model_dir: Path) -> int:
    """Layers as the configuration says; 0 where it does not."""
    layers = _configuration(model_dir).get("num_hidden_layers")
    return layers if isinstance(layers, int) else 0


def _configuration(model_dir: Path) -> dict[str, Any]:
    try:
        config = json.loads((model_dir / "config.json").read_text())
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}
