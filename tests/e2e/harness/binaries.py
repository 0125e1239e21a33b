"""Where the control plane comes from: KUBEBUILDER_ASSETS, ../shared/kube, or our own build."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
CACHE = Path(os.environ.get("OMNISERVE_TOOLS_DIR", "~/.cache/omniserve/tools")).expanduser()
UNPACK_TIMEOUT_S = 300
BUILD_TIMEOUT_S = 3600
NEEDED = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")


class MissingBinaryError(Exception):
    """A program of the control plane is missing; the message says where it was sought."""


@dataclass(frozen=True)
class Binaries:
    """A folder that holds every program in NEEDED, and perhaps the 1.36 server of CRDs."""

    folder: Path

    def path(self, name: str) -> str:
        """The program's path."""
        return str(self.folder / name)

    @property
    def knows_cel(self) -> bool:
        """Whether the CRD server that evaluates CEL rules is there."""
        return (self.folder / "apiextensions-apiserver").exists()


def find_binaries() -> Binaries:
    """The programs, unpacked or built on first use."""
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    if assets:
        return _complete(Path(assets), "KUBEBUILDER_ASSETS")
    for parent in ROOT.parents:
        installer = parent / "shared/kube/install"
        if installer.exists():
            return _complete(_run(installer, CACHE / "kube", UNPACK_TIMEOUT_S), str(installer))
    script = ROOT / "hack/build-control-plane"
    return _complete(_run(script, CACHE / "kube-built", BUILD_TIMEOUT_S), str(script))


def _run(installer: Path, folder: Path, timeout_s: int) -> Path:
    done = subprocess.run(
        [str(installer), str(folder)], capture_output=True, text=True, timeout=timeout_s
    )
    if done.returncode:
        raise MissingBinaryError(f"{installer} {folder} failed: {done.stderr.strip()[-2000:]}")
    return folder


def _complete(folder: Path, source: str) -> Binaries:
    missing = [name for name in NEEDED if not (folder / name).exists()]
    if missing:
        raise MissingBinaryError(f"{', '.join(missing)} not in {folder} (from {source})")
    return Binaries(folder)


def helm_path() -> str:
    """The real helm, fetched on first use by hack/get-helm."""
    done = subprocess.run(
        [str(ROOT / "hack/get-helm")], capture_output=True, text=True, timeout=UNPACK_TIMEOUT_S
    )
    if done.returncode:
        raise MissingBinaryError(f"hack/get-helm failed: {done.stderr.strip()[-2000:]}")
    return done.stdout.strip().splitlines()[-1]


def kubectl_path(binaries: Binaries) -> str | None:
    """kubectl beside the control plane or on the PATH, or None."""
    beside = binaries.folder / "kubectl"
    return str(beside) if beside.exists() else shutil.which("kubectl")
