"""Native code on one ISA path: each needs a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import omniserve_native

TESTS = Path(__file__).parents[1]
NATIVE = Path(omniserve_native.__file__).parents[1]  # or where native/emulated.sh built it


def available_isas() -> list[str]:
    """Paths of this machine, from the message that refuses a path which does not exist."""
    answer = in_process("none", "import omniserve_native as n; n.isa_name()")
    return answer.stderr.rsplit("this machine has: ", 1)[1].split(" (")[0].split(", ")


def in_process(isa: str, code: str) -> subprocess.CompletedProcess[str]:
    """Runs Python code on one ISA path."""
    paths = [str(NATIVE), str(TESTS), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"OMNISERVE_ISA": isa, "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def assert_silent(isa: str, module: str) -> None:
    """That `main` of a module of `support` finds nothing on one path: each line it prints is a case
    that is wrong. Skipped where the machine has no such path."""
    if isa not in available_isas():
        pytest.skip(f"this machine has no {isa}")
    code = (
        f"import omniserve_native as n; from support import {module} as m; "
        "print(n.isa_name()); m.main()"
    )
    answer = in_process(isa, code)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.splitlines() == [isa]
