"""Median and range of a figure over rounds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def spread(name: str, values: Sequence[float]) -> dict[str, float | list[float]]:
    """`name`: the median; `name_range`: least and largest."""
    return {
        name: round(statistics.median(values), 3),
        f"{name}_range": [round(min(values), 3), round(max(values), 3)],
    }
