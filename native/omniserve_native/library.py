"""The compiled library, its dtypes and its errors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import IntEnum
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias

try:
    from omniserve_native import _omniserve
except ImportError as error:
    raise ImportError(
        "omniserve_native._omniserve is not built: run `pip install -e .`, or "
        "`python native/omniserve_native/build.py` when working from source"
    ) from error

ffi = _omniserve.ffi
lib = _omniserve.lib
Pointer: TypeAlias = Any  # a cffi pointer; cffi has no static types for them

BLOCK_TOKENS: int = lib.OS_BLOCK_TOKENS
MAX_Q_LEN: int = lib.OS_MAX_Q_LEN
MAX_GROUP: int = lib.OS_MAX_GROUP
SCALE_BYTES = 2  # of int8 KV


class DType(IntEnum):
    """Element types of KV and, but for I8, of activations."""

    F32 = 0
    BF16 = 1
    F16 = 2
    I8 = 3  # a signed byte each, and one bfloat16 scale for a token's K (or V) of one kv head

    @property
    def bytes(self) -> int:
        """Bytes of one element."""
        return {DType.F32: 4, DType.I8: 1}.get(self, 2)

    def head_bytes(self, head_size: int) -> int:
        """Bytes of one token's K (or V) of one kv head: as stored, imported and exported."""
        return head_size * self.bytes + (SCALE_BYTES if self is DType.I8 else 0)


class Status(IntEnum):
    """Why a call failed."""

    EINVAL = -1
    ENOMEM = -2
    EFULL = -3
    EBUSY = -4
    ESTATE = -5


class Closing(ABC):
    """Closes itself at the end of a `with` block."""

    @abstractmethod
    def close(self) -> None:
        """Gives the native object back."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class NativeError(Exception):
    """A native call failed. `message` names the argument, its value and what would be right."""

    def __init__(self, code: Status, message: str) -> None:
        super().__init__(f"{message} ({code.name})")
        self.code = code
        self.message = message


def last_error(code: int) -> NativeError:
    """The calling thread's last failure."""
    return NativeError(Status(code), ffi.string(lib.os_last_error()).decode())


def checked(status: int) -> int:
    """The answer of a call that returns a negative status on failure."""
    if status < 0:
        raise last_error(status)
    return status


def created(handle: Pointer) -> Pointer:
    """The answer of a call that returns NULL on failure."""
    if handle == ffi.NULL:
        raise last_error(lib.os_last_status())
    return handle


def isa_name() -> str:
    """ISA path in use; see OMNISERVE_ISA. Raises NativeError when that cannot be had."""
    name: bytes = ffi.string(created(lib.os_isa_name()))
    return name.decode()


def library_file() -> Path:
    """The compiled library: what it holds is what runs."""
    return Path(_omniserve.__file__)


def pointer(address: int) -> Pointer:
    """A `void *` from an address; 0 is NULL."""
    return ffi.cast("void *", address)
