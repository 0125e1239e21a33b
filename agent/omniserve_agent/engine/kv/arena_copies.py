"""Copies between two arenas: the CPU device's and the host's."""

from __future__ import annotations

from dataclasses import dataclass

from omniserve_native import Arena


@dataclass(eq=False)
class ArenaCopies:
    """See `TierCopies`."""

    device: Arena
    host: Arena

    def to_host(self, device: int, host: int, start: int, count: int) -> None:
        """See `TierCopies`."""
        self.device.copy_to(self.host, device, host, start, count)

    def to_device(self, host: int, device: int, start: int, count: int) -> None:
        """See `TierCopies`."""
        self.host.copy_to(self.device, host, device, start, count)
