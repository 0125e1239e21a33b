"""What every result file holds beside its figures: machine, commit, command, seed."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "bench/out"
PACKAGES = ("torch", "transformers", "numpy", "cffi", "aiohttp", "pyzmq", "msgspec")
PROGRAM_TIMEOUT_S = 20


def _answer(*command: str) -> str | None:
    """A program's output, or None where it is missing or fails."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=PROGRAM_TIMEOUT_S, check=True
        )
    except (subprocess.SubprocessError, OSError):
        return None
    return done.stdout.strip()


def cpu_model() -> str:
    """The processor's name."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def versions() -> dict[str, str | None]:
    """Of Python and of the packages that matter; None where one is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def machine() -> dict[str, Any]:
    """CPU model, usable cores, memory in bytes, GPU or None, versions."""
    gpu = _answer("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    return {
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": psutil.virtual_memory().total,
        "gpu": gpu.splitlines()[0] if gpu else None,
        "kernel": platform.release(),
        "versions": versions(),
    }


def commit() -> str:
    """The commit that was measured, with `-dirty` when tracked files differ from it."""
    return _answer("git", "describe", "--always", "--dirty", "--abbrev=12") or "unknown"


def write(name: str, contents: dict[str, Any], *, seed: int) -> Path:
    """Writes bench/out/NAME.json and returns its path."""
    OUT.mkdir(parents=True, exist_ok=True)
    path = OUT / f"{name}.json"
    head = {"machine": machine(), "commit": commit(), "command": " ".join(sys.argv), "seed": seed}
    path.write_text(json.dumps(head | contents, indent=2) + "\n")
    return path
