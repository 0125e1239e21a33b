"""Fixtures of the cluster tests: one control plane for all, torn down whatever happens."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.harness.api import Api
from e2e.harness.binaries import find_binaries
from e2e.harness.cel_server import CelServer
from e2e.harness.cluster import Cluster
from e2e.harness.control_plane import ControlPlane
from e2e.harness.install import installed, kubelet_running, values
from e2e.harness.waiting import eventually
from e2e.kubelet.kubelet import Kubelet


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data and logs; OMNISERVE_E2E_DIR keeps them in a place of one's choice."""
    chosen = os.environ.get("OMNISERVE_E2E_DIR")
    folder = Path(chosen) if chosen else tmp_path_factory.mktemp("e2e")
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)  # pods run as other users and read their volumes in it
    for parent in folder.parents:
        if parent.is_relative_to("/tmp") and parent != Path("/tmp"):
            parent.chmod(0o755)
    return folder


@pytest.fixture(scope="session")
def control_plane(workspace: Path) -> Iterator[ControlPlane]:
    plane = ControlPlane(find_binaries(), workspace / "control-plane")
    try:
        plane.start()
        yield plane
    finally:
        plane.stop()


@pytest.fixture(scope="session")
def api(control_plane: ControlPlane) -> Api:
    """The administrator's access to the 1.20 server."""
    return control_plane.api


@pytest.fixture(scope="session")
def cel_server(control_plane: ControlPlane, workspace: Path) -> Iterator[CelServer]:
    """The 1.36 server of CRDs."""
    if not control_plane.binaries.knows_cel:
        pytest.skip("no apiextensions-apiserver beside the control plane: CEL rules not run here")
    server = CelServer(control_plane, workspace / "cel-server")
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def namespace(api: Api) -> Iterator[str]:
    """A namespace of this test's own."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    api.create("/api/v1/namespaces", {"metadata": {"name": name}})
    account = f"/api/v1/namespaces/{name}/serviceaccounts/default"
    eventually(lambda: (api.find(account) or {}).get("secrets"), 30, f"ServiceAccount of {name}")
    yield name
    api.delete(f"/api/v1/namespaces/{name}")


@pytest.fixture(scope="module")
def kubelet(
    control_plane: ControlPlane, workspace: Path, request: pytest.FixtureRequest
) -> Iterator[Kubelet]:
    """A kubelet without nodes whose agents are fake; a module adds the nodes it wants."""
    folder = workspace / request.module.__name__.rpartition(".")[2]
    with kubelet_running(control_plane, folder, fake_agents=True) as kubelet:
        yield kubelet


@pytest.fixture(scope="module")
def cluster(
    control_plane: ControlPlane, kubelet: Kubelet, workspace: Path, request: pytest.FixtureRequest
) -> Iterator[Cluster]:
    """OmniServe installed with fake agents, without agent nodes yet."""
    folder = workspace / request.module.__name__.rpartition(".")[2]
    with installed(control_plane, kubelet, folder, values()) as cluster:
        yield cluster


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """A failure shows the end of the logs of every pod that the module ran."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    kubelet = getattr(item, "funcargs", {}).get("kubelet") or getattr(
        getattr(item, "funcargs", {}).get("cluster"), "kubelet", None
    )
    if report.failed and isinstance(kubelet, Kubelet):
        report.sections.append(("pod logs", kubelet.logs()))
