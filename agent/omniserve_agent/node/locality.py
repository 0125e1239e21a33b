"""Where an engine runs and where its host KV lies, in words for logs."""

from __future__ import annotations

from omniserve_agent.engine.messages import EngineConfig, HostMemory
from omniserve_agent.node.memory import in_mib
from omniserve_agent.node.topology import listed


def cores_line(config: EngineConfig) -> str:
    """Its cores, and the NUMA nodes for host KV where the machine has several."""
    where = f", host KV on {_nodes(config.host_nodes)}" if config.host_nodes else ""
    return f"device cores {listed(config.device_cores)}, host {listed(config.host_cores)}{where}"


def memory_line(memory: HostMemory) -> str:
    """What came of it."""
    huge = memory.huge_page_bytes
    pages = "unknown" if huge is None else in_mib(huge)
    return f"host KV {in_mib(memory.bytes)}, on huge pages {pages}{_policy(memory)}"


def _policy(memory: HostMemory) -> str:
    if not memory.numa_nodes:
        return ""
    if memory.policy == "first_touch":
        return f", where workers touched it first: mbind was refused ({memory.refused})"
    return f", {memory.policy} on {_nodes(memory.numa_nodes)}"


def _nodes(numbers: list[int]) -> str:
    return f"NUMA node{'s' if len(numbers) > 1 else ''} {listed(numbers)}"
