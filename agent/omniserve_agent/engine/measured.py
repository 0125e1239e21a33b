"""What profiling finds; see `profiling.py`. Free of torch, for the agent reads it too."""

from __future__ import annotations

import msgspec

from omniserve_agent.scheduling.latency import LatencyModel


class Measured(msgspec.Struct, frozen=True):
    """A model on its device, and what its host brings."""

    latency: LatencyModel
    host_read_bytes_per_s: float | None = None  # all workers; None: hardly anything was read
