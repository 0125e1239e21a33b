"""Builds `_omniserve`, the cffi module over the C library; `omniserve.h` is the one declaration.

`setup.py` uses `ffibuilder` and `IsaBuildExt`. `python native/omniserve_native/build.py` builds in
place for work from source.
"""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from pathlib import Path

from cffi import FFI
from setuptools import Extension
from setuptools.command.build_ext import build_ext

NATIVE = Path("native")  # setuptools wants paths relative to the project's root
COMMON_FLAGS = ["-std=c11", "-D_GNU_SOURCE", "-O3", "-ffp-contract=fast", "-fvisibility=hidden"]
WARNING_FLAGS = ["-Wall", "-Wextra"]
AVX2_FLAGS = ["-mavx2", "-mfma", "-mf16c"]
AVX512_FLAGS = [*AVX2_FLAGS, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq"]
VNNI_FLAGS = [*AVX512_FLAGS, "-mavx512vnni"]
ISA_FLAGS = {
    "kernel_avx2.c": AVX2_FLAGS,
    "kernel_avx512.c": AVX512_FLAGS,
    "kernel_avx512_vnni.c": VNNI_FLAGS,
    "kernel_avx512_bf16.c": [*VNNI_FLAGS, "-mavx512bf16"],
    "dense_avx2.c": AVX2_FLAGS,
    "dense_avx512.c": AVX512_FLAGS,
    "dense_avx512_bf16.c": [*AVX512_FLAGS, "-mavx512bf16"],
}


def isa_flags(source: str) -> list[str]:
    """Flags of one kernel source; on other machines than x86-64 the file is empty."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return []
    return ISA_FLAGS.get(source, [])


def declarations(root: Path = Path()) -> str:
    """The header without what cffi's parser cannot read: preprocessor lines and comments."""
    header = (root / NATIVE / "include/omniserve.h").read_text()
    without_comments = re.sub(r"/\*.*?\*/", "", header, flags=re.DOTALL)
    return "\n".join(line for line in without_comments.splitlines() if not line.startswith("#"))


def common_sources(root: Path = Path()) -> list[str]:
    """C files that every machine compiles alike."""
    names = sorted(path.name for path in (root / NATIVE / "src").glob("*.c"))
    return [str(NATIVE / "src" / name) for name in names if name not in ISA_FLAGS]


class IsaBuildExt(build_ext):
    """Compiles each ISA's kernel with its own flags: setuptools has flags per extension only."""

    def build_extension(self, ext: Extension) -> None:
        """Adds the kernels' objects to the extension, then builds it as usual."""
        if ext.name == "omniserve_native._omniserve":
            for source in ISA_FLAGS:
                objects = self.compiler.compile(
                    [str(NATIVE / "src" / source)],
                    output_dir=self.build_temp,
                    include_dirs=ext.include_dirs,
                    extra_postargs=[*ext.extra_compile_args, *isa_flags(source)],
                    depends=ext.depends,
                )
                ext.extra_objects = [*ext.extra_objects, *objects]
        super().build_extension(ext)


def make_builder() -> FFI:
    """The module's description; run from the project's root."""
    builder = FFI()
    builder.cdef(declarations())
    depends = sorted(NATIVE.glob("include/*.h")) + sorted(NATIVE.glob("src/*.[hi]*"))
    builder.set_source(
        "omniserve_native._omniserve",
        '#include "omniserve.h"',
        sources=common_sources(),
        include_dirs=[str(NATIVE / "include")],
        depends=[str(path) for path in depends],
        extra_compile_args=[*COMMON_FLAGS, *WARNING_FLAGS],
        extra_link_args=["-pthread"],
        libraries=["m"],
    )
    return builder


def main() -> None:
    """Builds in place."""
    root = Path(__file__).resolve().parents[2]
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=root, check=True
    )


if __name__ == "__main__":
    main()
else:
    ffibuilder = make_builder()
