"""The scheduling package compiled by mypyc (docs/decisions/0010), in wheels that ask for it.

    OMNISERVE_COMPILE=1 pip install .

Never beside the sources, where a compiled module would hide what is edited: `bench/compiled.py`
makes a copy for whoever wants to run one here.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.errors import OptionError

VARIABLE = "OMNISERVE_COMPILE"
REQUIREMENTS = ["mypy>=2.4,<3"]  # mypyc comes with it
PACKAGE = Path("omniserve_agent/scheduling")
BUILD = Path("build/mypyc")
LEFT_OUT = {
    "__init__": "it holds nothing",
    "be_queue": "explanations: made when asked",
    "ceiling": "reports: made when asked",
    "explain": "explanations: made when asked",
    "held_back": "mypyc cannot make a dataclass that is Generic",
}
# numpy is an object like any other: what comes out does not depend on what is installed beside.
MYPY_OPTIONS = ["--config-file=", "--no-site-packages", "--ignore-missing-imports"]


def wanted() -> bool:
    """Whether this build is to be a compiled one."""
    return os.environ.get(VARIABLE) == "1"


def refuse_beside_sources() -> None:
    """For builds that leave what they make among the sources."""
    if wanted():
        raise OptionError(
            f"{VARIABLE}=1 compiles wheels alone: in an editable or in-place build compiled "
            f"modules would hide the sources beside them; unset {VARIABLE}"
        )


def modules(source: Path) -> list[Path]:
    """What is compiled, of the package below `source`."""
    found = sorted((source / PACKAGE).glob("*.py"))
    return [path for path in found if path.stem not in LEFT_OUT]


def extensions(source: Path, optimise: str = "3") -> list[Extension]:
    """Of the package below `source`, a path relative to the working directory. Needs mypy."""
    from mypyc.build import mypycify

    options = [*MYPY_OPTIONS, f"--cache-dir={BUILD / 'cache'}"]
    paths = [str(path) for path in modules(source)]
    found = mypycify(
        [*options, *paths],
        opt_level=optimise,
        debug_level="0",
        group_name="omniserve_scheduling",
        target_dir=str(BUILD),
    )
    return [one for one in found if isinstance(one, Extension)]  # all: setuptools is imported


def main() -> None:
    """In place in the working directory, which holds a copy of the package."""
    if Path.cwd() == Path(__file__).resolve().parent:
        sys.exit(f"{Path(__file__).name}: these are the sources; bench/compiled.py compiles a copy")
    made = extensions(Path(), optimise=sys.argv[1])
    setup(
        name="compiled",
        packages=[],
        py_modules=[],
        ext_modules=made,
        script_args=["--quiet", "build_ext", "--inplace"],
    )


if __name__ == "__main__":
    main()
