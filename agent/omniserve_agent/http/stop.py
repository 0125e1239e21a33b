"""Stop strings over token boundaries: text is held back while it may still become one."""

from __future__ import annotations

from collections.abc import Sequence


class StopFilter:
    """Passes text on up to the first stop string, which is never emitted.

    The stop string that is complete first wins (of those, the longest), so that the result does
    not depend on how the text was cut into pieces.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """(text that may be emitted, whether a stop string was found)."""
        if not self._stops:
            return text, False
        buffer = self._held + text
        start = self._first_match(buffer)
        if start is not None:
            self._held = ""
            return buffer[:start], True
        keep = self._held_length(buffer)
        cut = len(buffer) - keep
        self._held = buffer[cut:]
        return buffer[:cut], False

    def flush(self) -> str:
        """What was held back, at the end of the output."""
        held, self._held = self._held, ""
        return held

    def _first_match(self, buffer: str) -> int | None:
        found = ((buffer.find(stop), len(stop)) for stop in self._stops)
        ends = [(start + length, start) for start, length in found if start >= 0]
        return min(ends)[1] if ends else None

    def _held_length(self, buffer: str) -> int:
        """Length of the longest end of `buffer` that begins a stop string."""
        longest = min(len(buffer), max(len(stop) for stop in self._stops) - 1)
        lengths = range(longest, 0, -1)
        return next((n for n in lengths if self._begins_stop(buffer[len(buffer) - n :])), 0)

    def _begins_stop(self, end: str) -> bool:
        return any(stop.startswith(end) for stop in self._stops)
