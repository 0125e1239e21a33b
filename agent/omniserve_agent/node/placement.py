"""Which cores of the divided ones each engine gets: near to each other and to its GPU. Pure.

How many each gets is settled before (`cores`). On a machine of one NUMA node nothing moves.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from omniserve_agent.node.topology import Topology

Part = tuple[tuple[int, ...], tuple[int, ...]]  # device cores and host cores of an engine


def together(
    parts: Sequence[Part],
    http: tuple[int, ...],
    named: Collection[int],
    topology: Topology,
    near: Sequence[int | None],
) -> tuple[list[Part], tuple[int, ...]]:
    """Disjoint parts of the same sizes, each within one node where one has room for it, that of its
    GPU (`near`, by engine) before others; `named` cores stay. Then the cores of HTTP."""
    given = {*http, *(core for device, host in parts for core in (*device, *host))}
    free = topology.by_node(sorted(given.difference(named)))
    if len(free) < 2:
        return list(parts), http
    wished = [_wish(part, node, named, topology) for part, node in zip(parts, near, strict=True)]
    needs = [len({*device, *host}.difference(named)) for device, host in parts]
    homes = _homes(needs, wished, {node: len(cores) for node, cores in free.items()})
    placed = list(parts)
    # Those that have to spread take what the others leave.
    for index in sorted(range(len(parts)), key=lambda index: homes[index] is None):
        home = wished[index] if homes[index] is None else homes[index]
        device, host = (_placed(cores, free, home, named) for cores in parts[index])
        placed[index] = (device, host)
    return placed, tuple(sorted(core for cores in free.values() for core in cores))


def take(free: dict[int, list[int]], count: int, home: int | None) -> tuple[int, ...]:
    """`count` of the cores `free` by node: of `home`, else of the node they fill best, else of
    several, `home` first and then those with most."""
    roomy = [node for node, cores in free.items() if len(cores) >= count]
    order = sorted(free, key=lambda node: (node != home, -len(free[node]), node))
    if roomy and home not in roomy:
        order = [min(roomy, key=lambda node: (len(free[node]), node))]
    taken: list[int] = []
    for node in order:
        some = count - len(taken)
        taken += free[node][:some]
        free[node] = free[node][some:]
    return tuple(taken)


def _placed(
    cores: tuple[int, ...], free: dict[int, list[int]], home: int | None, named: Collection[int]
) -> tuple[int, ...]:
    return cores if set(cores) <= set(named) else take(free, len(cores), home)


def _wish(part: Part, node: int | None, named: Collection[int], topology: Topology) -> int | None:
    """The GPU's node; where there is none, that of the cores the user has named."""
    own = [core for cores in part for core in cores if core in named]
    return topology.node(own[0]) if node is None and own else node


def _homes(
    needs: Sequence[int], wished: Sequence[int | None], room: Mapping[int, int]
) -> list[int | None]:
    """By engine a node that has room for all of it; wishes are met first, for all that have one."""
    left = dict(room)
    homes: list[int | None] = [None] * len(needs)
    for index, (need, wish) in enumerate(zip(needs, wished, strict=True)):
        if wish is not None and left.get(wish, 0) >= need:
            homes[index] = wish
            left[wish] -= need
    for index, need in enumerate(needs):
        roomy = [node for node in left if left[node] >= need]
        if homes[index] is None and roomy:
            home = min(roomy, key=lambda node: (left[node], node))
            homes[index] = home
            left[home] -= need
    return homes
