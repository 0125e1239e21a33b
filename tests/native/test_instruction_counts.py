"""The kernels' instruction counts against the recorded ones: a regression shows without timing."""

from __future__ import annotations

import json
from typing import Any

import pytest

from support.counted_calls import ATTENTION
from support.instruction_counts import GROUPS, RECORD, compiler, count, unavailable

# Another libm; a lost unrolling or a loop that spills costs far more.
TOLERANCE = 0.03


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    record: dict[str, Any] = json.loads(RECORD.read_text())
    reason = unavailable()
    if reason is None and compiler() != record["compiler"]:
        reason = f"the library is from {compiler()}, the counts are of {record['compiler']}"
    if reason:
        pytest.skip(reason)
    return record


@pytest.mark.parametrize("group", GROUPS)
def test_no_case_takes_more_instructions_than_recorded(
    group: str, recorded: dict[str, Any]
) -> None:
    before, now = recorded["counts"][group], count(GROUPS[group])
    assert list(before) == list(now)
    changes = {name: now[name] / before[name] - 1 for name in now}
    worse = {name: f"{change:+.1%}" for name, change in changes.items() if change > TOLERANCE}
    better = {name: f"{change:+.1%}" for name, change in changes.items() if change < -TOLERANCE}
    again = "; `cd tests && python -m support.instruction_counts` records the new counts"
    assert not worse, f"{worse}{again}"
    assert not better, f"{better}{again}, so that what was gained is kept"


def test_every_token_costs_what_the_arithmetic_says(recorded: dict[str, Any]) -> None:
    """Recorded counts against multiply-adds of the shape: 8 lanes at a time, K and V."""
    for name, (dtype, group, q_len, head_size) in ATTENTION.items():
        least = 2 * recorded["context"] * group * q_len * head_size / 8
        assert recorded["counts"]["avx2"][name] > least, (name, dtype)
