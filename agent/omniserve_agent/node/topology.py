"""Which cores share memory and which share a core, as sysfs has it."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

SYSFS = Path("/sys")


@dataclass(frozen=True)
class Topology:
    """By core its NUMA node, and the first hardware thread of its physical core. Where nothing is
    known there is one node, with one thread per core."""

    nodes: Mapping[int, int] = field(default_factory=dict)
    firsts: Mapping[int, int] = field(default_factory=dict)
    node_count: int = 1  # of the machine, also those where no core may be used

    def node(self, core: int) -> int:
        """The NUMA node that the core lies on."""
        return self.nodes.get(core, 0)

    def first(self, core: int) -> int:
        """The lowest usable hardware thread of the same physical core."""
        return self.firsts.get(core, core)

    def by_node(self, cores: Iterable[int]) -> dict[int, list[int]]:
        """The cores, in order, by node."""
        found: dict[int, list[int]] = {}
        for core in cores:
            found.setdefault(self.node(core), []).append(core)
        return found

    def memory_nodes(self, cores: Collection[int]) -> tuple[int, ...]:
        """Where that should lie which these cores read evenly: on their nodes, but for those of a
        few stragglers; nothing where the machine has one node."""
        if self.node_count < 2 or not cores:
            return ()
        held = self.by_node(cores)
        most = max(len(some) for some in held.values())
        return tuple(sorted(node for node, some in held.items() if 2 * len(some) >= most))


FLAT = Topology()


def read_topology(usable: Collection[int], sysfs: Path = SYSFS) -> Topology:
    """Nodes and hardware threads of the cores that this process may use."""
    directories = list((sysfs / "devices/system/node").glob("node[0-9]*"))
    nodes = {
        core: int(directory.name[len("node") :])
        for directory in directories
        for core in _cores(directory / "cpulist")
        if core in usable
    }
    firsts = {core: min(_threads(core, sysfs) & {*usable}, default=core) for core in usable}
    return Topology(nodes, firsts, max(1, len(directories)))


def gpu_node(pci_bus_id: str, sysfs: Path = SYSFS) -> int | None:
    """The NUMA node of the GPU with an id like "0000:c1:00.0"; None: the machine does not say."""
    device = sysfs / "bus/pci/devices" / pci_bus_id.lower()
    text = _text(device / "numa_node") if pci_bus_id else ""
    return int(text) if text.isdigit() else None  # "-1": the firmware does not say


def listed(cores: Collection[int]) -> str:
    """As sysfs writes them: "0-3,8"."""
    runs = itertools.groupby(enumerate(sorted(cores)), lambda pair: pair[1] - pair[0])
    parts = [[core for _, core in run] for _, run in runs]
    return ",".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)


def _threads(core: int, sysfs: Path) -> set[int]:
    """Hardware threads of the physical core."""
    directory = sysfs / f"devices/system/cpu/cpu{core}/topology"
    return set(_cores(directory / "core_cpus_list")) or set(
        _cores(directory / "thread_siblings_list")  # before Linux 5.3
    )


def _cores(path: Path) -> Iterator[int]:
    for part in _text(path).split(","):
        first, _, last = part.partition("-")
        if first.isdigit():
            yield from range(int(first), int(last or first) + 1)


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
