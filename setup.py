"""The native part of the build; everything else is in pyproject.toml."""

import runpy

from setuptools import setup

BUILD = "native/omniserve_native/build.py"

setup(
    cffi_modules=[f"{BUILD}:ffibuilder"],
    cmdclass={"build_ext": runpy.run_path(BUILD)["IsaBuildExt"]},
)
