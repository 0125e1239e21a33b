"""What the node has to share out, and which cores an engine gets of it. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from omniserve_agent.node.capacity import Capacity
from omniserve_agent.node.cluster.assigned import Room
from omniserve_agent.node.cores import CoreWishes, Division, EngineCores, divide
from omniserve_agent.node.errors import NodeError
from omniserve_agent.node.memory import (
    API_PROCESS_BYTES,
    CPU_ENGINE_PROCESS_BYTES,
    CUDA_ENGINE_PROCESS_BYTES,
    DEFAULT_CPU_DEVICE_KV_BYTES,
    LARGEST_DEFAULT_HOST_KV_BYTES,
    MIB,
    in_mib,
)
from omniserve_agent.node.topology import FLAT, Topology
from omniserve_agent.settings import Settings


@dataclass(frozen=True)
class FoundDevice:
    """A device of this node; bytes of its memory, for a CPU what is left for weights."""

    id: str
    kind: str
    memory_bytes: int
    free_bytes: int | None = None  # None: the CPU
    numa_node: int | None = None  # of a GPU, where the machine tells it

    @property
    def cuda(self) -> bool:
        """Whether it is a GPU."""
        return self.free_bytes is not None


@dataclass(frozen=True)
class Shares:
    """The node divided once, at start: each device has its cores, host cores are a pool."""

    devices: tuple[FoundDevice, ...]
    division: Division
    host_kv_bytes: int
    topology: Topology = FLAT

    @property
    def host_cores(self) -> tuple[int, ...]:
        """Cores of host attention, all devices together."""
        return tuple(sorted({core for engine in self.division.engines for core in engine.host}))

    @property
    def room(self) -> Room:
        """What assignments may add up to."""
        names = tuple(device.id for device in self.devices)
        return Room(names, len(self.host_cores), self.host_kv_bytes)

    def device(self, device_id: str) -> FoundDevice:
        """The device; KeyError if it is not here."""
        return self.devices[self._index(device_id)]

    def cores(self, device_id: str, host_cores: int, taken: Collection[int]) -> EngineCores:
        """The device's own cores and `host_cores` of those not `taken`: its own part first, then
        those on the same NUMA nodes.

        NodeError where too few are free, which a diff has ruled out before.
        """
        own = self.division.engines[self._index(device_id)]
        nodes = {self.topology.node(core) for core in own.host}
        others = sorted(self.host_cores, key=lambda core: self.topology.node(core) not in nodes)
        free = [core for core in (*own.host, *others) if core not in taken]
        picked = tuple(sorted(list(dict.fromkeys(free))[:host_cores]))
        if len(picked) < host_cores:
            raise NodeError(f"{host_cores} host cores are assigned and {len(picked)} are free")
        return replace(own, host=picked, host_nodes=self.topology.memory_nodes(picked))

    def _index(self, device_id: str) -> int:
        return [device.id for device in self.devices].index(device_id)


def share_out(settings: Settings, gpus: Sequence[FoundDevice], capacity: Capacity) -> Shares:
    """Divide cores and memory between the devices; NodeError with figures where they lack."""
    count = max(1, len(gpus))
    wishes = CoreWishes(
        device=settings.device_cores.cores if settings.device_cores else None,
        host=settings.host_cores.cores if settings.host_cores else None,
        share=settings.share_cores,
    )
    division = divide(
        capacity.cores,
        count,
        cuda=bool(gpus),
        wishes=wishes,
        topology=capacity.topology,
        near=[gpu.numa_node for gpu in gpus] or [None],
    )
    free_bytes = capacity.memory_bytes - _process_bytes(settings, len(gpus))
    host_kv_bytes = _host_kv_bytes(settings, free_bytes, capacity, cuda=bool(gpus))
    if gpus:
        return Shares(tuple(gpus), division, host_kv_bytes, capacity.topology)
    cpu = FoundDevice("cpu", capacity.cpu_name, max(0, free_bytes - host_kv_bytes))
    return Shares((cpu,), division, host_kv_bytes, capacity.topology)


def _process_bytes(settings: Settings, gpus: int) -> int:
    """What processes take beside host KV and, on a CPU, weights."""
    if gpus:
        return API_PROCESS_BYTES + gpus * CUDA_ENGINE_PROCESS_BYTES
    device_kv_bytes = settings.device_kv_bytes or DEFAULT_CPU_DEVICE_KV_BYTES
    return API_PROCESS_BYTES + CPU_ENGINE_PROCESS_BYTES + device_kv_bytes


def _host_kv_bytes(settings: Settings, free_bytes: int, capacity: Capacity, *, cuda: bool) -> int:
    """As told; else, under a limit that is ours alone, most of it beside GPUs and half of it where
    weights need room too; without a limit little, since the machine's memory is others' as well."""
    wanted = settings.host_kv_bytes
    if wanted is None and capacity.memory_limited:
        wanted = free_bytes * 9 // 10 if cuda else free_bytes // 2
    elif wanted is None:
        wanted = min(LARGEST_DEFAULT_HOST_KV_BYTES, free_bytes // 5)
    wanted = wanted // MIB * MIB
    if not MIB <= wanted <= free_bytes:
        raise NodeError(
            f"--host-kv: {in_mib(max(0, wanted))} wanted and {in_mib(max(0, free_bytes))} of "
            f"{in_mib(capacity.memory_bytes)} left beside the processes; "
            "lower it or raise the memory limit"
        )
    return wanted
