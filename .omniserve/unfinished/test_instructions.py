"""Instructions of the hot loops, counted by callgrind: regressions show without timing.

On the AVX2 path, the widest that valgrind runs. OMNISERVE_RECORD=1 writes new counts.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.instructions import SHAPES

TESTS = Path(__file__).parents[1]
RECORDED = Path(__file__).with_name("instructions.json")
TOLERANCE = 0.03


def compiler() -> str:
    if shutil.which("gcc") is None:
        return "none"
    command = ["gcc", "-dumpfullversion"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def counts(directory: Path) -> dict[str, int]:
    """By shape: instructions inside one os_attend."""
    command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={directory / 'out'}"]
    command += ["--toggle-collect=os_attend", "--dump-after=os_attend", sys.executable, "-m"]
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent / "native")])
    answer = subprocess.run(
        [*command, "support.instructions"],
        env=os.environ | {"OMNISERVE_ISA": "avx2", "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr[-2000:]
    dumps = [directory / f"out.{i + 1}" for i in range(len(SHAPES))]
    totals = [re.search(r"^totals: (\d+)", dump.read_text(), re.MULTILINE) for dump in dumps]
    return dict(zip(SHAPES, (int(total[1]) for total in totals), strict=True))


def test_hot_loops_execute_what_was_recorded(tmp_path: Path) -> None:
    if shutil.which("valgrind") is None:
        pytest.skip("valgrind is not installed")
    recording = os.environ.get("OMNISERVE_RECORD") == "1"
    known = {} if recording else json.loads(RECORDED.read_text())
    if not recording and known["gcc"] != compiler():
        pytest.skip(f"counts are of gcc {known['gcc']}, this is {compiler()}")
    now = counts(tmp_path)
    if recording:
        RECORDED.write_text(json.dumps({"gcc": compiler(), "avx2": now}, indent=2) + "\n")
        return
    off = {
        shape: (count, known["avx2"][shape])
        for shape, count in now.items()
        if abs(count / known["avx2"][shape] - 1) > TOLERANCE
    }
    assert not off, f"instructions now and recorded: {off}"
