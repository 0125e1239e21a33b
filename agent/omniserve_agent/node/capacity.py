"""What this machine lets the agent use: cores, quota, memory. Reads files, decides nothing."""

from __future__ import annotations

import os
import platform
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from omniserve_agent.node.cores import usable_cores
from omniserve_agent.node.topology import FLAT, Topology, read_topology


@dataclass(frozen=True)
class Capacity:
    """Usable cores by number, and bytes of memory."""

    cores: tuple[int, ...]
    memory_bytes: int
    memory_limited: bool = False  # by a cgroup: what is below the limit is ours alone
    cpu_name: str = "CPU"
    topology: Topology = FLAT


def read_capacity(near: Collection[int | None] = ()) -> Capacity:
    """Affinity mask and quota, cgroup limit and MemTotal: the smaller of each pair. `near`: the
    NUMA nodes of the GPUs, whose cores a quota pays first; None: not known."""
    affinity = os.sched_getaffinity(0)
    topology = read_topology(affinity)
    total_bytes = psutil.virtual_memory().total
    limit_bytes = min(memory_limits_bytes(), default=total_bytes)
    return Capacity(
        cores=usable_cores(affinity, quota_cores(), topology, near),
        memory_bytes=min(total_bytes, limit_bytes),
        memory_limited=limit_bytes < total_bytes,
        cpu_name=cpu_name(),
        topology=topology,
    )


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name as the kernel tells it, else its architecture."""
    for line in _text(cpuinfo).splitlines():
        field, _, value = line.partition(":")
        if field.strip() == "model name":
            return value.strip()
    return platform.machine()


def quota_cores(
    proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> float | None:
    """The tightest CPU quota over the process's cgroups, in cores; None: no quota."""
    quotas = []
    for group in _groups(proc, root, "cpu"):
        quota, _, period = _text(group / "cpu.max").partition(" ")
        if not quota:
            quota = _text(group / "cpu.cfs_quota_us")
            period = _text(group / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit() and int(quota) and int(period):
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def memory_limits_bytes(
    proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> list[int]:
    """Every memory limit over the process's cgroups, in bytes."""
    texts = [
        _text(group / name)
        for group in _groups(proc, root, "memory")
        for name in ("memory.max", "memory.limit_in_bytes")
    ]
    return [int(text) for text in texts if text.isdigit()]


def _groups(proc: Path, root: Path, controller: str) -> Iterator[Path]:
    """The directories of the process's group and its ancestors, for v2 and for v1's controller.

    Inside a container the group's own path may not exist below the mount; the root then stands for
    it, which is where the container's limits appear.
    """
    for line in _text(proc).splitlines():
        number, controllers, path = (*line.split(":", 2), "", "")[:3]
        if number == "0":
            base = root
        elif controller in controllers.split(","):
            base = root / controller
        else:
            continue
        group = base / path.strip("/")
        yield from (part for part in (group, *group.parents) if part.is_relative_to(base))


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
