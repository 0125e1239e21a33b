"""How commands end: one line for the user and an exit code."""

from __future__ import annotations

import sys
from typing import NoReturn

import typer

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2


def fail(message: str, code: int) -> NoReturn:
    """End the command."""
    print(f"omniserve-agent: {' '.join(message.split())}", file=sys.stderr)
    raise typer.Exit(code)
