"""Where the control plane comes from: KUBEBUILDER_ASSETS, an installer in a folder above the
checkout (shared/kube/install), or our own build."""

from __future__ import annotations

import os
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


def find_binaries(*, build: bool = True) -> Binaries:
    """The programs, unpacked or, with `build`, built on first use."""
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    if assets:
        return _complete(Path(assets), "KUBEBUILDER_ASSETS")
    for parent in ROOT.parents:
        installer = parent / "shared/kube/install"
        if installer.exists():
            return _complete(_run(installer, CACHE / "kube", UNPACK_TIMEOUT_S), str(installer))
    script, folder = ROOT / "hack/build-control-plane", CACHE / "kube-built"
    if not build and not all((folder / name).exists() for name in NEEDED):
        raise MissingBinaryError(
            "no control plane: set KUBEBUILDER_ASSETS to a folder with etcd and kube-apiserver, "
            f"kube-controller-manager, kube-scheduler, or build them once: {script} {folder}"
        )
    return _complete(_run(script, folder, BUILD_TIMEOUT_S), str(script))


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


def main() -> None:
    """Fetches everything while there is still a network: the sandbox has none."""
    print(find_binaries().folder)
    print(helm_path())


if __name__ == "__main__":
    main()
