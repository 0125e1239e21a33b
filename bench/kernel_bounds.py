"""Where a row of kernel.json stands below its two roofs: memory's and arithmetic's.

The multiply-adds that a shape needs are 2 * group * q_len * head_size a token and kv head, in every
dtype; what is widened, exponentiated or summed beside them is not counted, so the bound is above
what any code could reach. `bound_gbps` is the lower of the read roof (`roof_gbps`) and of what the
multiply-adds allow (`arithmetic_gbps`).
"""

from __future__ import annotations

import statistics
from typing import Any

Turn = dict[str, float]
ROOF = "roof "  # before the name of each way to read


def of(turns: list[Turn], macs_per_byte: float, unit: str) -> dict[str, Any]:
    """The row's fields. A turn has the kernel's GB/s ("own"), GB/s of the ways to read ("roof ...")
    and G multiply-adds/s of float32 ("floats") and of `unit`, by which the path multiplies such KV.

    The roof is the way with the largest median: the largest of every turn would be noise's. Of
    multiply-adds the best turn counts: they do not depend on the memory's other users, so whatever
    is less was disturbed. Float32's share can exceed 1 where `unit` is something faster; the bound
    counts by `unit`."""
    way = fastest(turns)
    memory = [turn[way] for turn in turns]
    own = [turn["own"] for turn in turns]
    floats, allowed = (max(turn[name] for turn in turns) for name in ("floats", unit))
    allowed /= macs_per_byte
    bound = [min(gbps, allowed) for gbps in memory]
    return {
        "roof_gbps": statistics.median(memory),
        "roof_way": way.removeprefix(ROOF),
        "roof_fraction": share(own, memory),
        "macs_per_byte": macs_per_byte,
        "fma_gmacs": floats,
        "fma_fraction": statistics.median(own) * macs_per_byte / floats,
        "arithmetic_gbps": allowed,
        "bound_gbps": statistics.median(bound),
        "bound_fraction": share(own, bound),
    }


def fastest(turns: list[Turn]) -> str:
    """The way to read with the largest median."""
    ways = [name for name in turns[0] if name.startswith(ROOF)]
    return max(ways, key=lambda way: statistics.median(turn[way] for turn in turns))


def share(values: list[float], of: list[float]) -> float:
    """Median of the turns' quotients."""
    return statistics.median(a / b for a, b in zip(values, of, strict=True))
