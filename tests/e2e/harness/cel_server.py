"""The 1.36 server of custom resources: it evaluates the CRDs' CEL rules and defaults, alone.

It keeps its data in the control plane's etcd under a prefix of its own and asks the 1.20 server for
identity only.
"""

from __future__ import annotations

from pathlib import Path

import requests

from e2e.harness.api import Access, Api, ApiError
from e2e.harness.control_plane import ControlPlane, free_port
from e2e.harness.daemon import Daemon
from e2e.harness.waiting import eventually

READY_TIMEOUT_S = 90
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


class CelServer:
    """apiextensions-apiserver beside a control plane."""

    def __init__(self, control_plane: ControlPlane, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        port = free_port()
        kubeconfig = control_plane.kubeconfig
        self.api = Api(
            Access(
                f"https://127.0.0.1:{port}",
                str(folder / "certificates/apiserver.crt"),
                control_plane.access.token,
            )
        )
        plugins = "ValidatingAdmissionPolicy,MutatingAdmissionPolicy"
        plugins += ",ValidatingAdmissionWebhook,MutatingAdmissionWebhook"
        self._daemon = Daemon(
            "apiextensions-apiserver",
            [
                control_plane.binaries.path("apiextensions-apiserver"),
                f"--etcd-servers={control_plane.etcd_url}",
                "--etcd-prefix=/crd",
                f"--secure-port={port}",
                "--bind-address=127.0.0.1",
                f"--cert-dir={folder / 'certificates'}",
                f"--authentication-kubeconfig={kubeconfig}",
                f"--authorization-kubeconfig={kubeconfig}",
                f"--kubeconfig={kubeconfig}",
                # With these on it waits for resources that 1.20 does not have.
                f"--disable-admission-plugins={plugins}",
                "--enable-priority-and-fairness=false",
            ],
            folder,
        )

    def start(self) -> None:
        """Returns when it serves CRDs."""
        self._daemon.start()
        eventually(self._is_ready, READY_TIMEOUT_S, "apiextensions-apiserver ready")

    def stop(self) -> None:
        self._daemon.stop()

    def _is_ready(self) -> bool:
        self._daemon.require_alive()
        try:
            self.api.get(CRDS)
        except (requests.RequestException, OSError, ApiError):
            return False
        return True
