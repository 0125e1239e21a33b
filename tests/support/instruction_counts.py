"""Instructions of the kernels' hot loops, counted by callgrind: load on the machine does not change
them. Callgrind knows no AVX-512; the avx2 and portable paths, from the same source, stand for all.

`python -m support.instruction_counts` (in tests/) counts anew and writes instruction_counts.json.
Under callgrind this file is run as a script; it must start fast, so no numpy.
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
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RECORD = ROOT / "tests/native/instruction_counts.json"
LIBRARY_FOLDER = ROOT / "native/omniserve_native"
ISAS = ("avx2", "portable")
CONTEXT = 512
F32, BF16, F16, I8 = range(4)
# name: KV dtype, group, q_len, head size
CASES = {
    "bf16 group 1": (BF16, 1, 1, 128),
    "bf16 group 4": (BF16, 4, 1, 128),
    "bf16 group 8": (BF16, 8, 1, 128),
    "bf16 group 4, 4 tokens": (BF16, 4, 4, 128),
    "bf16 group 3, head size 64": (BF16, 3, 1, 64),
    "fp16 group 4": (F16, 4, 1, 128),
    "fp32 group 4": (F32, 4, 1, 128),
    "int8 group 4": (I8, 4, 1, 128),
}
TIMEOUT_S = 240


def compiler() -> str | None:
    """What compiled the library, from its .comment section."""
    for library in LIBRARY_FOLDER.glob("_omniserve*.so"):
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


def attend_all(site: str) -> None:
    """Each case once, through the library alone; `site` holds cffi. Runs under callgrind."""
    sys.path[:0] = [str(LIBRARY_FOLDER), site]
    library: Any = importlib.import_module("_omniserve")
    for dtype, group, q_len, head_size in CASES.values():
        attend(library.ffi, library.lib, dtype, group, q_len, head_size)


def attend(ffi: Any, lib: Any, dtype: int, group: int, q_len: int, head_size: int) -> None:
    """One kv head over CONTEXT tokens that differ little, as bf16 or the KV's own dtype."""
    blocks = CONTEXT // 16
    config = [1, 1, head_size, blocks, 1, blocks, dtype]
    arena = lib.os_arena_create(ffi.new("os_arena_config *", config))
    sequence = lib.os_seq_open(arena)
    rows = BF16 if dtype == I8 else dtype
    values = [0.5 + (i * 37 % 64) / 64 for i in range(CONTEXT * head_size)]
    bytes_of = {F32: values, BF16: [0x3F00 + i * 37 % 256 for i in range(len(values))]}
    bytes_of[F16] = [0x3800 + i * 37 % 1024 for i in range(len(values))]
    kind = "float[]" if rows == F32 else "uint16_t[]"
    kv, q = (
        ffi.new(kind, bytes_of[rows]),
        ffi.new(kind, bytes_of[rows][: q_len * group * head_size]),
    )
    o = ffi.new(kind, q_len * group * head_size)
    lib.os_seq_set_blocks(arena, sequence, 0, blocks, ffi.new("int32_t[]", list(range(blocks))))
    if lib.os_arena_append(arena, sequence, 0, 0, CONTEXT, kv, kv, head_size, rows) != 0:
        raise RuntimeError(ffi.string(lib.os_last_error()).decode())
    segment = ffi.new("os_segment *", [sequence, q_len, CONTEXT - q_len])
    args = ffi.new("os_attend_args *")
    args.arena, args.q_heads, args.dtype, args.scale = arena, group, rows, head_size**-0.5
    args.q, args.o, args.segments, args.segments_count = q, o, segment, 1
    args.q_stride = args.o_stride = group * head_size
    if lib.os_attend(args) != 0:
        raise RuntimeError(ffi.string(lib.os_last_error()).decode())
    lib.os_arena_destroy(arena)


def count(isa: str) -> dict[str, int]:
    """Instructions of each case inside os_attend_item: the kernel and what surrounds it."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["valgrind", "--tool=callgrind", "--collect-atstart=no"]
        command += ["--toggle-collect=os_attend_item", "--dump-after=os_attend"]
        backend = importlib.util.find_spec("_cffi_backend")
        site = str(Path(str(backend and backend.origin)).parent)
        command += [
            f"--callgrind-out-file={folder}/out",
            sys.executable,
            "-S",
            "-E",
            __file__,
            site,
        ]
        environment = os.environ | {"OMNISERVE_ISA": isa}
        done = subprocess.run(
            command,
            env=environment,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(done.stderr)
        totals = [total(Path(folder) / f"out.{i + 1}") for i in range(len(CASES))]
    return dict(zip(CASES, totals, strict=True))


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
    counts = {isa: count(isa) for isa in ISAS}
    record = {"compiler": compiler(), "context": CONTEXT, "counts": counts}
    RECORD.write_text(json.dumps(record, indent=2) + "\n")
    print(RECORD.read_text())


if __name__ == "__main__":
    if len(sys.argv) > 1:
        attend_all(sys.argv[1])
    else:
        main()
