"""etcd, kube-apiserver, kube-controller-manager and kube-scheduler, on ports of their own."""

from __future__ import annotations

import random
import secrets
import socket
import subprocess
from contextlib import closing
from pathlib import Path

import requests
import yaml

from e2e.harness.api import Access, Api, ApiError
from e2e.harness.binaries import Binaries
from e2e.harness.daemon import Daemon
from e2e.harness.waiting import eventually

READY_TIMEOUT_S = 90
KEY_TIMEOUT_S = 30
PORTS = range(20_000, 32_000)
_CANDIDATES = iter(random.sample(PORTS, len(PORTS)))


class ControlPlane:
    """The four programs and an administrator's access to them; `folder` keeps data and logs."""

    def __init__(self, binaries: Binaries, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.binaries = binaries
        self.folder = folder
        self.port = free_port()
        self.etcd_url = f"http://127.0.0.1:{free_port()}"
        self._admin_token = secrets.token_hex(16)
        self.kubeconfig = folder / "admin.kubeconfig"
        self.access = Access(
            f"https://127.0.0.1:{self.port}",
            str(folder / "certificates/apiserver.crt"),
            self._admin_token,
        )
        self.api = Api(self.access)
        self._etcd = Daemon("etcd", self._etcd_argv(), folder)
        self._apiserver = Daemon("kube-apiserver", self._apiserver_argv(), folder)
        self._controllers = Daemon("kube-controller-manager", self._controllers_argv(), folder)
        self._scheduler = Daemon("kube-scheduler", self._scheduler_argv(), folder)

    def start(self, *, controllers: bool = True) -> None:
        """Starts all four, or only the first two; returns when the API server is ready."""
        _write_service_account_key(self._key)
        (self.folder / "tokens.csv").write_text(f"{self._admin_token},admin,admin,system:masters\n")
        write_kubeconfig(self.kubeconfig, self.access)
        self._etcd.start()
        self.start_apiserver()
        if controllers:
            self._controllers.start()
            self._scheduler.start()
            eventually(self._controlled, READY_TIMEOUT_S, "controllers and scheduler at work")

    def stop(self) -> None:
        """Stops what runs, in the order in which nothing waits for anything."""
        for daemon in (self._scheduler, self._controllers, self._apiserver, self._etcd):
            daemon.stop()

    def start_apiserver(self) -> None:
        """Also after `stop_apiserver`: same port, same data."""
        self._apiserver.start()
        eventually(self._is_ready, READY_TIMEOUT_S, f"kube-apiserver ready on port {self.port}")

    def stop_apiserver(self) -> None:
        """Controllers and scheduler stay and come back by themselves."""
        self._apiserver.kill()

    def restart_controllers(self) -> None:
        """1.20's controllers exit when they have lost the API server for long; start them again."""
        for daemon in (self._controllers, self._scheduler):
            daemon.stop()
            daemon.start()

    def _is_ready(self) -> bool:
        self._etcd.require_alive()
        self._apiserver.require_alive()
        try:
            self.api.get("/api/v1/namespaces/default")
            response = requests.get(
                f"{self.access.url}/readyz",
                verify=self.access.ca_file,
                headers={"Authorization": f"Bearer {self._admin_token}"},
                timeout=5,
            )
        except (requests.RequestException, OSError, ApiError):
            return False
        return response.status_code == 200

    def _controlled(self) -> bool:
        self._controllers.require_alive()
        self._scheduler.require_alive()
        try:
            self.api.get("/api/v1/namespaces/default/serviceaccounts/default")
        except (requests.RequestException, OSError, ApiError):
            return False
        return True

    @property
    def _key(self) -> Path:
        return self.folder / "service-account.key"

    def _etcd_argv(self) -> list[str]:
        peer = f"http://127.0.0.1:{free_port()}"
        return [
            self.binaries.path("etcd"),
            f"--data-dir={self.folder / 'etcd'}",
            f"--listen-client-urls={self.etcd_url}",
            f"--advertise-client-urls={self.etcd_url}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--unsafe-no-fsync",
        ]

    def _apiserver_argv(self) -> list[str]:
        return [
            self.binaries.path("kube-apiserver"),
            f"--etcd-servers={self.etcd_url}",
            "--bind-address=127.0.0.1",
            # Only written into the `kubernetes` Service's endpoints, which refuse loopback.
            "--advertise-address=10.244.255.254",
            f"--secure-port={self.port}",
            f"--cert-dir={self.folder / 'certificates'}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={self._key}",
            f"--service-account-signing-key-file={self._key}",
            f"--token-auth-file={self.folder / 'tokens.csv'}",
            "--authorization-mode=RBAC",
            "--service-cluster-ip-range=10.0.0.0/16",
            "--allow-privileged=true",
        ]

    def _controllers_argv(self) -> list[str]:
        return [
            self.binaries.path("kube-controller-manager"),
            f"--kubeconfig={self.kubeconfig}",
            f"--service-account-private-key-file={self._key}",
            f"--root-ca-file={self.access.ca_file}",
            "--leader-elect=false",
            f"--secure-port={free_port()}",
            "--port=0",
            "--bind-address=127.0.0.1",
            f"--cert-dir={self.folder / 'controllers'}",
            # A lost node is noticed soon, yet not because two busy cores delayed a heartbeat.
            "--node-monitor-period=2s",
            "--node-monitor-grace-period=20s",
        ]

    def _scheduler_argv(self) -> list[str]:
        return [
            self.binaries.path("kube-scheduler"),
            f"--kubeconfig={self.kubeconfig}",
            "--leader-elect=false",
            f"--secure-port={free_port()}",
            "--port=0",
            "--bind-address=127.0.0.1",
            f"--cert-dir={self.folder / 'scheduler'}",
        ]


def free_port() -> int:
    """A port nobody listens on, never the same twice. None of those that outgoing connections are
    given: one of them could take it before its program listens."""
    for port in _CANDIDATES:
        with closing(socket.socket()) as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError(f"no free port in {PORTS}")


def write_kubeconfig(path: Path, access: Access, namespace: str = "default") -> None:
    """A kubeconfig for one server and one token, readable by its owner only."""
    context = {"cluster": "test", "user": "test", "namespace": namespace}
    cluster = {"server": access.url, "certificate-authority": access.ca_file}
    path.touch(mode=0o600)
    path.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "test", "cluster": cluster}],
                "users": [{"name": "test", "user": {"token": access.token}}],
                "contexts": [{"name": "test", "context": context}],
                "current-context": "test",
            }
        )
    )


def _write_service_account_key(path: Path) -> None:
    subprocess.run(
        ["openssl", "genrsa", "-out", str(path), "2048"],
        check=True,
        capture_output=True,
        timeout=KEY_TIMEOUT_S,
    )
