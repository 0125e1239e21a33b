"""setuptools as the build backend, with mypy where the scheduling package is to be compiled."""

from __future__ import annotations

from setuptools import build_meta

import compile_scheduling

Settings = dict[str, str | list[str] | None] | None

build_sdist = build_meta.build_sdist
build_wheel = build_meta.build_wheel
build_editable = build_meta.build_editable
prepare_metadata_for_build_wheel = build_meta.prepare_metadata_for_build_wheel
prepare_metadata_for_build_editable = build_meta.prepare_metadata_for_build_editable


def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:
    """What is to be installed before."""
    if compile_scheduling.wanted():
        return compile_scheduling.REQUIREMENTS  # setup.py needs them even to be asked
    return build_meta.get_requires_for_build_wheel(config_settings)


get_requires_for_build_sdist = get_requires_for_build_wheel


def get_requires_for_build_editable(config_settings: Settings = None) -> list[str]:
    """The first hook of an editable install."""
    compile_scheduling.refuse_beside_sources()
    return build_meta.get_requires_for_build_editable(config_settings)
