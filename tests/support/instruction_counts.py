"""Instructions of the library's hot loops, counted by callgrind: load on the machine does not
change them. Callgrind knows no AVX-512; the avx2 and portable paths, from the same source, stand
for all.

`python -m support.instruction_counts` (in tests/) counts anew and writes instruction_counts.json.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from support import counted_calls as calls

RECORD = calls.ROOT / "tests/native/instruction_counts.json"
TIMEOUT_S = 240


@dataclass(frozen=True)
class Group:
    """Calls of one kind on one ISA path. Instructions count inside `inside` and what that calls."""

    calls: str
    isa: str
    cases: tuple[str, ...]
    inside: tuple[str, ...]


HALVES = ("os_dense_before", "os_dense_after")
HOPS = ("os_exchange_submit", "os_exchange_pick")
# Not one of them within another: each toggles the count.
PARTS = ("os_attend_item", "os_attend_prefix", "os_attend_rest")
MERGE = ("finish",)  # of each path, a static function behind a pointer
TOKENS = ("os_arena_append", "os_arena_import", "os_arena_export")
GROUPS = {
    "avx2": Group("attention", "avx2", tuple(calls.ATTENTION), ("os_attend_item",)),
    "portable": Group("attention", "portable", tuple(calls.ATTENTION), ("os_attend_item",)),
    "dense": Group("dense", "avx2", tuple(calls.DENSE), HALVES),
    "hops": Group("hops", "avx2", calls.HOPS, HOPS),
    "layer": Group("layer", "avx2", calls.LAYER, ("os_layer",)),
    "parts": Group("parts", "avx2", calls.PARTS, PARTS),
    "merges": Group("parts", "avx2", calls.PARTS, MERGE),
    "tokens": Group("tokens", "avx2", tuple(calls.TOKENS), TOKENS),
}


def compiler() -> str | None:
    """What compiled the library, from its .comment section."""
    for library in calls.LIBRARY_FOLDER.glob("_omniserve*.so"):
        found = re.search(rb"GCC: \([^)]*\) [0-9.]+", library.read_bytes())
        return found.group().decode() if found else None
    return None


def unavailable() -> str | None:
    """Why nothing can be counted here, or None."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return f"counts are of x86-64, this is {platform.machine()}"
    if shutil.which("valgrind") is None:
        return "valgrind is not installed"
    return None


def command(group: Group, folder: str) -> list[str]:
    """Callgrind over the group's calls, one dump for each case."""
    backend = importlib.util.find_spec("_cffi_backend")
    site = str(Path(str(backend and backend.origin)).parent)
    return [
        "valgrind",
        "--tool=callgrind",
        "--collect-atstart=no",
        *(f"--toggle-collect={name}" for name in group.inside),
        "--dump-after=os_last_status",
        f"--callgrind-out-file={folder}/out",
        *(sys.executable, "-S", "-E", str(calls.__file__), group.calls, site),
    ]


def count(group: Group) -> dict[str, int]:
    """Instructions of each case."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            command(group, folder),
            env=os.environ | {"OMNISERVE_ISA": group.isa},
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(done.stderr)
        totals = [total(Path(folder) / f"out.{i + 1}") for i in range(len(group.cases))]
    return dict(zip(group.cases, totals, strict=True))


def total(dump: Path) -> int:
    """The instructions of one dump."""
    found = re.search(r"^totals: (\d+)", dump.read_text(), re.MULTILINE)
    if found is None:
        raise RuntimeError(f"{dump} has no totals")
    return int(found.group(1))


def main() -> None:
    """Counts and writes."""
    reason = unavailable()
    if reason:
        sys.exit(f"instruction_counts: {reason}")
    counts = {name: count(group) for name, group in GROUPS.items()}
    record = {"compiler": compiler(), "context": calls.CONTEXT, "counts": counts}
    RECORD.write_text(json.dumps(record, indent=2) + "\n")
    print(RECORD.read_text())


if __name__ == "__main__":
    main()
