"""Which cores do what. Pure: tables in, tables out; the reader of the machine is `capacity`.

The device, host attention and the rest (HTTP, detokenising, clients) get disjoint cores, and so do
engines. Where too few are left to set one aside, HTTP shares the host attention cores, whose
workers then run at batch priority and spin briefly. Of a physical core one hardware thread is used:
what waits for memory gains little from a second one, and HTTP may have those of the host cores.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from omniserve_agent.node.errors import NodeError
from omniserve_agent.node.placement import Part, take, together
from omniserve_agent.node.topology import FLAT, Topology

# With 1000, wake-ups of a thread that needs 60 % of the core are 2.7 to 3.7 ms late at the 99th
# percentile, with 50 at most 0.4 ms.
SHARED_SPIN_US = 50
# Longer than a layer of a small model: to wake a worker costs the engine's thread 10 to 20 us on a
# virtual machine, at every layer that finds it asleep, and the core has nothing else to do.
OWN_SPIN_US = 1000


@dataclass(frozen=True)
class CoreWishes:
    """What the user set; None: divided automatically."""

    device: tuple[int, ...] | None = None
    host: tuple[int, ...] | None = None
    share: bool = False


@dataclass(frozen=True)
class EngineCores:
    """The cores of one engine and how its host workers behave on theirs."""

    device: tuple[int, ...]
    host: tuple[int, ...]
    host_batch_priority: bool
    host_spin_us: int
    host_nodes: tuple[int, ...] = ()  # NUMA nodes to hold what `host` reads; empty: there is one


@dataclass(frozen=True)
class Division:
    """The machine divided: one entry per engine, then the cores of HTTP and everything else."""

    engines: tuple[EngineCores, ...]
    http: tuple[int, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _Pools:
    device: tuple[int, ...]
    host: tuple[int, ...]
    http: tuple[int, ...]  # empty: HTTP shares the host cores


def usable_cores(
    affinity: Collection[int],
    quota_cores: float | None,
    topology: Topology = FLAT,
    near: Collection[int | None] = (),
) -> tuple[int, ...]:
    """The cores this process may keep busy: of its mask, as many as the quota (in cores) pays,
    evenly on the nodes `near` (of its GPUs, where known), physical cores before second threads."""
    cores = sorted(affinity)
    count = len(cores) if quota_cores is None else max(1, math.floor(quota_cores))
    if count >= len(cores):
        return tuple(cores)
    known = dict.fromkeys(node for node in near if node is not None)
    homes: list[int | None] = [*known] or [None]
    picked: list[int] = []
    for second in (False, True):
        threads = [core for core in cores if (topology.first(core) != core) is second]
        free = topology.by_node(threads)
        some = min(count - len(picked), len(threads))
        for home, share in zip(homes, _split(tuple(range(some)), len(homes)), strict=True):
            picked += take(free, len(share), home)
    return tuple(sorted(picked))


def divide(
    cores: Sequence[int],
    engines: int,
    *,
    cuda: bool,
    wishes: CoreWishes,
    emulated: bool = False,
    topology: Topology = FLAT,
    near: Sequence[int | None] = (),
) -> Division:
    """Divide `cores` between `engines` engines; raises NodeError with figures where they lack.
    `near`: by engine the NUMA node of its GPU, where that is known.

    The thread of an `emulated` device is one per engine, as a GPU's. It sleeps most of the time and
    still wants its core for itself: with HTTP there, a layer's end was met milliseconds late.
    """
    _check_wishes(cores, wishes)
    threads = _one_of_each_core(tuple(cores), engines, wishes, topology)
    pools = _pools(threads, engines, cuda or emulated, wishes)
    shared = _shared_reason(threads, engines, pools, wishes)
    if shared and not wishes.share and (engines > 1 or len(threads) > 1):
        raise NodeError(f"{shared}; use fewer models, more cores, or --share-cores without SLOs")
    parts, http = _share_all(pools, engines), pools.http
    if not shared:
        homes = near or [None] * engines
        parts, http = together(_slices(pools, engines), http, _named(wishes), topology, homes)
    hosts = tuple(dict.fromkeys(core for _, host in parts for core in host))
    if not shared:
        http += _second_threads(http or hosts, cores, threads, topology)
    crowded = bool(shared) or not http
    return Division(
        engines=tuple(_engine(part, crowded, topology) for part in parts),
        http=http or hosts,
        warnings=(f"{shared}: cores are shared and SLOs are not promised",) if shared else (),
    )


def _engine(part: Part, crowded: bool, topology: Topology) -> EngineCores:
    device, host = part
    spin_us = SHARED_SPIN_US if crowded else OWN_SPIN_US
    return EngineCores(device, host, crowded, spin_us, topology.memory_nodes(host))


def _named(wishes: CoreWishes) -> frozenset[int]:
    return frozenset((*(wishes.device or ()), *(wishes.host or ())))


def _one_of_each_core(
    cores: tuple[int, ...], engines: int, wishes: CoreWishes, topology: Topology
) -> tuple[int, ...]:
    """One hardware thread of each physical core, and what is named; all where that is too few."""
    named = _named(wishes)
    busy = {topology.first(core) for core in named}
    threads = tuple(
        core
        for core in cores
        if core in named or (topology.first(core) == core and core not in busy)
    )
    unnamed = [wishes.device, wishes.host].count(None)
    return threads if len(threads) - len(named) >= unnamed * engines else cores


def _second_threads(
    beside: Collection[int], cores: Sequence[int], used: Collection[int], topology: Topology
) -> tuple[int, ...]:
    """The unused hardware threads of the physical cores of `beside`."""
    firsts = {topology.first(core) for core in beside}
    return tuple(core for core in cores if core not in used and topology.first(core) in firsts)


def _check_wishes(cores: Sequence[int], wishes: CoreWishes) -> None:
    for flag, wanted in (("--device-cores", wishes.device), ("--host-cores", wishes.host)):
        missing = sorted(set(wanted or ()) - set(cores))
        if missing:
            raise NodeError(
                f"{flag} {_text(wanted or ())}: core {missing[0]} is not usable here; "
                f"use some of {_text(cores)} (affinity mask and quota)"
            )
    both = sorted(set(wishes.device or ()) & set(wishes.host or ()))
    if both and not wishes.share:
        raise NodeError(
            f"--device-cores and --host-cores both name core {both[0]}; "
            "make them disjoint, or add --share-cores"
        )


def _pools(cores: tuple[int, ...], engines: int, cuda: bool, wishes: CoreWishes) -> _Pools:
    """The three pools: device first, then host, then HTTP, in order of core number."""
    free = [core for core in cores if core not in _named(wishes)]
    http = free[len(free) - _http_count(len(cores), len(free), engines, cuda) :]
    work = free[: len(free) - len(http)]
    if wishes.device is not None and wishes.host is not None:
        return _Pools(wishes.device, wishes.host, tuple(free))
    if wishes.device is not None:
        return _Pools(wishes.device, tuple(work) or wishes.device, tuple(http))
    if wishes.host is not None:
        return _Pools(tuple(work) or wishes.host, wishes.host, tuple(http))
    device = _device_count(len(work), engines, cuda)
    return _Pools(tuple(work[:device]), tuple(work[device:] or work), tuple(http))


def _http_count(cores: int, free: int, engines: int, cuda: bool) -> int:
    """How many cores HTTP gets for itself, once each engine has two."""
    spare = cores - 2 * engines
    if spare < 2 or free < 2:
        return 0
    return min(2 if cuda or cores >= 8 else 1, spare - 1, free - 1)


def _device_count(work: int, engines: int, cuda: bool) -> int:
    """A GPU's layer loop needs one thread; dense modules on a CPU take half, rounded up."""
    return max(1, min(engines, work) if cuda else (work + 1) // 2)


def _shared_reason(
    cores: Sequence[int], engines: int, pools: _Pools, wishes: CoreWishes
) -> str | None:
    """Why engines, or an engine's halves, cannot have cores of their own; None: they can."""
    if wishes.device is None and wishes.host is None and len(cores) < 2 * engines:
        return (
            f"{_plural(engines, 'engine')} (one per distinct spec.model) need "
            f"{2 * engines} cores, one for the device and one for host attention each, "
            f"and {_plural(len(cores), 'core')} ({_text(cores)}) can be used"
        )
    short = min(len(pools.device), len(pools.host))
    if short < engines:
        return (
            f"{_plural(engines, 'engine')} (one per distinct spec.model) need as many "
            "device cores and host cores, and there are "
            f"{len(pools.device)} ({_text(pools.device)}) "
            f"and {len(pools.host)} ({_text(pools.host)})"
        )
    both = sorted(set(pools.device) & set(pools.host))
    return f"core {both[0]} is both a device core and a host core" if both else None


def _share_all(pools: _Pools, engines: int) -> list[Part]:
    return [(pools.device, pools.host)] * engines


def _slices(pools: _Pools, engines: int) -> list[Part]:
    return list(zip(_split(pools.device, engines), _split(pools.host, engines), strict=True))


def _split(cores: tuple[int, ...], parts: int) -> list[tuple[int, ...]]:
    """Consecutive parts whose sizes differ by one at most, the larger ones first."""
    size, larger = divmod(len(cores), parts)
    edges = [part * size + min(part, larger) for part in range(parts + 1)]
    return [cores[low:high] for low, high in itertools.pairwise(edges)]


def _text(cores: Collection[int]) -> str:
    return ",".join(str(core) for core in sorted(cores)) or "none"


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
