"""Faults that tests inject into a running engine. Refused unless OMNISERVE_TESTING is 1."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

TESTING = "OMNISERVE_TESTING"
ITERATION_DELAY_FILE = "OMNISERVE_TEST_ITERATION_DELAY_FILE"
LONGEST_DELAY_MS = 60_000


class FaultSettingError(ValueError):
    """A fault is asked for where it may not be; one line for the user."""


def iteration_delay(environment: Mapping[str, str] = os.environ) -> Callable[[], float] | None:
    """Seconds to add to the next iteration, asked for each; None: no such fault is asked for.

    The variable names a file that holds milliseconds; no file, or an empty one, means none.
    """
    path = environment.get(ITERATION_DELAY_FILE)
    if not path:
        return None
    if environment.get(TESTING) != "1":
        raise FaultSettingError(
            f"{ITERATION_DELAY_FILE} is {path!r}: a fault for tests; unset it, or set {TESTING}=1"
        )
    return lambda: _read_s(Path(path))


def _read_s(path: Path) -> float:
    try:
        text = path.read_text().strip()
    except FileNotFoundError:
        return 0.0
    if not text:
        return 0.0
    delay_ms = float(text)
    if not 0 <= delay_ms <= LONGEST_DELAY_MS:
        raise FaultSettingError(
            f"{path} holds {text!r}; write 0 to {LONGEST_DELAY_MS} milliseconds"
        )
    return delay_ms / 1e3
