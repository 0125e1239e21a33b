"""Copies of whole-request KV between the tiers."""

from __future__ import annotations

from typing import Protocol


class TierCopies(Protocol):
    """KV of tokens [start, start + count), all layers, between sequences of the two tiers."""

    def to_host(self, device: int, host: int, start: int, count: int) -> None:
        """Device sequence to host sequence; complete when it returns."""

    def to_device(self, host: int, device: int, start: int, count: int) -> None:
        """Host sequence to device sequence; complete for all later device work."""
