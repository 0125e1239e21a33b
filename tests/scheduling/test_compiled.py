"""Compiled by mypyc, as images have it (docs/decisions/0010), the package makes the same plans."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import compiled

TESTS = Path(__file__).resolve().parents[1]
TIMEOUT_S = 250
BUILT = shutil.ignore_patterns("*.so", "_omniserve.c", "__pycache__")
BACKEND = "import sys; sys.path.insert(0, 'agent'); import build_backend; print({}())"


@pytest.fixture(scope="module")
def place():
    """Quickly compiled: without the C compiler's optimisations."""
    return compiled.folder(optimise="0")


def run(place, *arguments):
    environment = compiled.environment(place)
    environment["PYTHONPATH"] += os.pathsep + str(TESTS)
    return subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=True,
    ).stdout


def simulated(place):
    """Where the package was, and the runs line by line."""
    origin, *runs = run(place, "-m", "support.simulated_plans").splitlines()
    return Path(origin), runs


def test_plans_and_figures_are_the_same_to_the_last_digit(place):
    source, interpreted = simulated(None)
    binary, as_compiled = simulated(place)
    assert source.suffix == ".py"
    assert binary.suffix == ".so"
    assert place in binary.parents
    assert sum(json.loads(line)["iterations"] for line in interpreted) > 2000
    assert as_compiled == interpreted


@pytest.fixture
def project(tmp_path, monkeypatch):
    """What a build reads before it compiles; with the wish for compiled modules."""
    shutil.copy(TESTS.parent / "setup.py", tmp_path)
    shutil.copytree(TESTS.parent / "native", tmp_path / "native", ignore=BUILT)
    (tmp_path / "agent").mkdir()
    for path in (TESTS.parent / "agent").glob("*.py"):
        shutil.copy(path, tmp_path / "agent")
    monkeypatch.setenv("OMNISERVE_COMPILE", "1")
    return tmp_path


def build(project, *arguments):
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=TIMEOUT_S)


def test_a_wheel_asks_for_the_compiler_only_when_it_is_wanted(project, monkeypatch):
    hook = BACKEND.format("build_backend.get_requires_for_build_wheel")
    assert "mypy" in build(project, "-c", hook).stdout
    monkeypatch.delenv("OMNISERVE_COMPILE")
    assert "mypy" not in build(project, "-c", hook).stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("-c", BACKEND.format("build_backend.get_requires_for_build_editable")),
        ("setup.py", "build_ext", "--inplace"),
    ],
)
def test_nothing_is_compiled_beside_the_sources(project, arguments):
    done = build(project, *arguments)
    assert done.returncode
    assert "OMNISERVE_COMPILE=1 compiles wheels alone" in done.stderr
    assert not list(project.rglob("*.so"))
