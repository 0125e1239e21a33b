"""Waiting for what the cluster does in its own time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Found = TypeVar("Found")
POLL_S = 0.25


def eventually(check: Callable[[], Found], timeout_s: float, what: str) -> Found:
    """The first truthy answer of `check`; its AssertionErrors count as "not yet".

    Fails with `what` and the last thing seen when `timeout_s` has passed.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            found = check()
            if found:
                return found
            last: object = found
        except AssertionError as error:
            last = error
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:g} s: {what}; last seen: {last}")
        time.sleep(POLL_S)


def steadily(check: Callable[[], object], duration_s: float, what: str) -> None:
    """`check` stays truthy for `duration_s`; fails at the first time it is not."""
    deadline = time.monotonic() + duration_s
    while time.monotonic() < deadline:
        if not check():
            raise AssertionError(f"did not hold for {duration_s:g} s: {what}")
        time.sleep(POLL_S)
