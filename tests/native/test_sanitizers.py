"""The C tests under AddressSanitizer with UBSan, and under ThreadSanitizer."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "native" / "sanitize.sh"


@pytest.mark.parametrize("kind", ["address", "thread"])
def test_c_tests_are_clean(kind: str) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    answer = subprocess.run(
        [SCRIPT, kind], capture_output=True, text=True, timeout=280, check=False
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert f"{kind}: stress" in answer.stdout
    assert kind != "address" or "and 2000 random inputs" in answer.stdout
