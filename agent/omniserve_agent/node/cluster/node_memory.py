"""Who has which memory of the node: asked before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass, field

from omniserve_agent.node.memory import EngineDemand, EngineMemory, allot


@dataclass
class NodeMemory:
    """The demands of the engines that are there, by device."""

    limit_bytes: int
    _demands: dict[str, EngineDemand] = field(default_factory=dict)

    def reserve(self, device: str, demand: EngineDemand) -> EngineMemory:
        """Note the demand, in the place of an earlier one of the device, and answer its KV sizes.

        NodeError with figures where all demands together do not fit; then nothing is noted.
        """
        demands = {**self._demands, device: demand}
        sizes = dict(zip(demands, allot(self.limit_bytes, list(demands.values())), strict=True))
        self._demands = demands
        return sizes[device]

    def release(self, device: str) -> None:
        """The engine is gone."""
        self._demands.pop(device, None)
