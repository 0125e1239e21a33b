"""The chart, rendered by the real helm (hack/get-helm fetches one where there is none)."""

import subprocess

import pytest
import yaml

from support.chart import CHART, HELM_TIMEOUT_S, NAMESPACE, ROOT, Render, Rendered


@pytest.fixture(scope="session")
def helm() -> str:
    found = subprocess.run(
        [ROOT / "hack/get-helm"], capture_output=True, text=True, timeout=300, check=False
    )
    if found.returncode:
        pytest.skip(f"no helm: {found.stderr.strip()}")
    return found.stdout.strip()


@pytest.fixture
def helm_template(helm, tmp_path):
    """Run `helm template`; the finished process, whatever its exit code."""

    def run(
        values=None,
        *,
        chart=CHART,
        api_versions=(),
        kube_version="1.31.0",
        name="omniserve",
        namespace=NAMESPACE,
    ):
        file = tmp_path / "values.yaml"
        file.write_text(yaml.safe_dump(values or {}))
        flags = [f"--api-versions={version}" for version in api_versions]
        flags.append(f"--kube-version={kube_version}")
        return subprocess.run(
            [helm, "template", name, chart, "-n", namespace, "-f", file, *flags],
            capture_output=True,
            text=True,
            timeout=HELM_TIMEOUT_S,
            check=False,
        )

    return run


@pytest.fixture
def render(helm_template) -> Render:
    """Render with values; fails with helm's message."""

    def run(values=None, **options) -> Rendered:
        done = helm_template(values, **options)
        assert done.returncode == 0, done.stderr
        return Rendered(tuple(o for o in yaml.safe_load_all(done.stdout) if o))

    return run


@pytest.fixture
def refusal(helm_template):
    """What helm says about values that it refuses."""

    def run(values, **options) -> str:
        done = helm_template(values, **options)
        assert done.returncode != 0, f"accepted: {values}"
        return done.stderr

    return run
