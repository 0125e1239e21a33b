"""A copy of the agent with its scheduling package compiled, as images have it.

    python bench/compiled.py    # its place, for PYTHONPATH; made where sources are new

What is compiled lies under build/compiled, apart from the sources and named by what they hold: when
one of them changes, another copy is made. The agent's other packages are links to the sources.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from importlib import metadata
from pathlib import Path

import omniserve_agent
import report
from store import digest, digest_of_files

AGENT = report.ROOT / "agent"
COMPILER = AGENT / "compile_scheduling.py"
PACKAGE, SCHEDULING = "omniserve_agent", "scheduling"
FOLDER = report.ROOT / "build/compiled"
BUILD_TIMEOUT_S = 900


class BuildError(Exception):
    """What the compilers said."""


def folder(optimise: str = "3") -> Path:
    """What to put first on the path: compiled from the sources as they are now."""
    place = FOLDER / _name(optimise)
    if not place.exists():
        _make(place, optimise)
    return place


def _name(optimise: str) -> str:
    sources = digest_of_files([AGENT / PACKAGE / SCHEDULING, COMPILER])
    linked = sorted(path.name for path in _linked())
    by = (metadata.version("mypy"), sysconfig.get_config_var("EXT_SUFFIX"), optimise)
    return digest(sources, linked, by)


def _linked() -> list[Path]:
    return [p for p in (AGENT / PACKAGE).iterdir() if p.name not in (SCHEDULING, "__pycache__")]


def _make(place: Path, optimise: str) -> None:
    """Whole or not at all: two that make it at once do not see each other's half."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER) as name:
        unfinished = Path(name) / "agent"
        _lay_out(unfinished / PACKAGE)
        _compile(unfinished, optimise)
        shutil.rmtree(unfinished / "build")
        try:
            unfinished.rename(place)
        except OSError:
            if not place.exists():
                raise


def _lay_out(package: Path) -> None:
    package.mkdir(parents=True)
    sources = AGENT / PACKAGE / SCHEDULING
    shutil.copytree(sources, package / SCHEDULING, ignore=shutil.ignore_patterns("__pycache__"))
    for path in _linked():
        (package / path.name).symlink_to(path)


def _compile(into: Path, optimise: str) -> None:
    done = subprocess.run(
        [sys.executable, str(COMPILER), optimise],
        cwd=into,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=BUILD_TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        raise BuildError(f"the scheduling package does not compile:\n{done.stdout[-4000:]}")


def environment(place: Path | None) -> dict[str, str]:
    """For a process that imports the agent from this copy, or from the sources; never from where
    this process has it."""
    before = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    kept = [path for path in before if path and FOLDER not in Path(path).parents]
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(place or AGENT), *kept])}


def restart() -> None:
    """This program again, with the copy; nothing where it has it already."""
    if FOLDER not in Path(omniserve_agent.__file__).parents:
        os.execve(sys.executable, [sys.executable, *sys.argv], environment(folder()))


if __name__ == "__main__":
    print(folder())
