"""A machine's topology as a directory in the shape of /sys."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


def machine(
    root: Path,
    nodes: dict[int, str],
    threads: Sequence[str] = (),
    gpus: dict[str, int] | None = None,
    siblings_file: str = "core_cpus_list",
) -> Path:
    """Cores by NUMA node, hardware threads of each physical core, NUMA nodes of GPUs by PCI id."""
    for node, cores in nodes.items():
        write(root / f"devices/system/node/node{node}/cpulist", cores)
    for core in threads:
        for thread in core.split(","):
            write(root / f"devices/system/cpu/cpu{thread}/topology/{siblings_file}", core)
    for pci, node in (gpus or {}).items():
        write(root / f"bus/pci/devices/{pci}/numa_node", str(node))
    return root
