"""The real helm against the 1.20 server."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from e2e.harness.api import Object
from e2e.harness.binaries import ROOT, helm_path

CHART = ROOT / "charts/omniserve"
HELM_TIMEOUT_S = 300


class HelmError(Exception):
    """helm's own words."""


class Helm:
    """helm for one release namespace."""

    def __init__(self, kubeconfig: Path, folder: Path, namespace: str, release: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._program = helm_path()
        self._folder = folder
        self.namespace = namespace
        self.release = release
        homes = {f"HELM_{kind}_HOME": str(folder / kind) for kind in ("CACHE", "CONFIG", "DATA")}
        self._env = dict(os.environ) | homes | {"KUBECONFIG": str(kubeconfig)}

    def install(self, values: Object, chart: Path = CHART) -> None:
        """`helm upgrade --install` without waiting; the release's namespace is made."""
        path = self._folder / "values.yaml"
        path.write_text(json.dumps(values))
        self.run(
            "upgrade", "--install", self.release, str(chart), "--values", str(path),
            "--create-namespace",
        )  # fmt: skip

    def uninstall(self) -> None:
        self.run("uninstall", self.release, "--wait", "--timeout", "120s")

    def test(self, timeout_s: int) -> str:
        """`helm test`; its output."""
        return self.run("test", self.release, "--timeout", f"{timeout_s}s")

    def run(self, *arguments: str) -> str:
        """helm's output; HelmError with its own words where it does not succeed."""
        done = subprocess.run(
            [self._program, *arguments, "--namespace", self.namespace],
            env=self._env,
            capture_output=True,
            text=True,
            timeout=HELM_TIMEOUT_S,
        )
        if done.returncode:
            raise HelmError(f"helm {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout
