"""How commands end: one line for the user and an exit code."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NoReturn

import typer

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2


def fail(message: str, code: int) -> NoReturn:
    """End the command."""
    print(f"omniserve-agent: {' '.join(message.split())}", file=sys.stderr)
    raise typer.Exit(code)


def write_result(flag: str, path: Path, text: str) -> None:
    """Write what a command found to the file that `flag` names, or end the command."""
    try:
        path.write_text(text)
    except OSError as error:
        fail(f"{flag}: {path}: {error.strerror}", EXIT_FAILED)
