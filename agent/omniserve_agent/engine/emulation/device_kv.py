"""KV of an emulated device: block tables are kept by the tier, and there is no memory behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from omniserve_agent.engine.emulation.timeline import Timeline
from omniserve_native import Arena


class EmulatedKv:
    """A `KvStore` that gives out sequence numbers."""

    def __init__(self, max_sequences: int) -> None:
        self._free = list(range(max_sequences - 1, -1, -1))

    def open_sequence(self) -> int:
        """See `KvStore`."""
        return self._free.pop()

    def set_blocks(self, sequence: int, first: int, blocks: Sequence[int]) -> None:
        """See `KvStore`; nothing to note."""

    def truncate(self, sequence: int, tokens: int) -> None:
        """See `KvStore`; nothing to note."""

    def close_sequence(self, sequence: int) -> None:
        """See `KvStore`."""
        self._free.append(sequence)


@dataclass(eq=False)
class EmulatedCopies:
    """See `TierCopies`. Bytes on the host stay what they are; lengths are declared.

    The way to the host runs beside the device's work; for the way back the device waits, as long as
    the profile's link takes.
    """

    host: Arena
    timeline: Timeline
    token_copy_s: float  # KV of one token, all layers

    def to_host(self, device: int, host: int, start: int, count: int) -> None:
        """See `TierCopies`."""
        self.host.truncate(host, start + count)

    def to_device(self, host: int, device: int, start: int, count: int) -> None:
        """See `TierCopies`."""
        self.timeline.spend(count * self.token_copy_s)
