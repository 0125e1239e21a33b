"""The native part of the build, and the compiled one; everything else is in pyproject.toml."""

import runpy
from pathlib import Path
from types import SimpleNamespace

from setuptools import setup

BUILD = "native/omniserve_native/build.py"
compile_scheduling = SimpleNamespace(**runpy.run_path("agent/compile_scheduling.py"))


class BuildExt(runpy.run_path(BUILD)["IsaBuildExt"]):
    """With the scheduling package's modules where they are asked for."""

    def finalize_options(self) -> None:
        """Here, since only this command needs mypy, and knows where its files go."""
        if compile_scheduling.wanted():
            if self.inplace or self.editable_mode:
                compile_scheduling.refuse_beside_sources()
            self.distribution.ext_modules += compile_scheduling.extensions(Path("agent"))
        super().finalize_options()


setup(cffi_modules=[f"{BUILD}:ffibuilder"], cmdclass={"build_ext": BuildExt})
