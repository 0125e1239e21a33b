"""The compiled module; cffi gives it no static types."""

from typing import Any

ffi: Any
lib: Any
