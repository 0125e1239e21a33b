"""Steps found by timing: fake timers with steps that are known, quiet and noisy."""

import random

import pytest

from omniserve_agent.engine.curves import (
    FEW_REPEATS,
    GRID,
    GROWTH,
    REPEATS,
    measured_rows,
    sample,
    stepped_curve,
)
from omniserve_agent.simulation.emulated import emulated_device, heads_of

UNIT_S = 1e-3


class Device:
    """Seconds per run by a rule; counts what it was asked and how long that took."""

    def __init__(self, seconds, noise=0.0, seed=1):
        self.rule, self.noise, self.random = seconds, noise, random.Random(seed)
        self.runs, self.spent_s = [], 0.0

    def __call__(self, rows):
        seconds = self.rule(rows) * (1 + self.random.gauss(0, self.noise))
        self.runs.append(rows)
        self.spent_s += seconds
        return seconds


def tiled(tile, base=16, unit=1.0):
    """`base` units for the first tile, `unit` for each further one."""
    return lambda rows: UNIT_S * (base + unit * ((rows - 1) // tile))


def fixed_grid_s(rule):
    """What the grid took as it was measured before steps were looked for."""
    return (1 + REPEATS) * sum(rule(rows) for rows in GRID)


def found(rule, largest=256, noise=0.0):
    device, told = Device(rule, noise), []
    curve = stepped_curve(device, largest, told.append)
    assert told == sorted(told)
    assert told[0] == 0.0
    assert told[-1] <= 1.0
    return curve, device


def true_edges(rule, largest):
    return {rows for rows in range(1, largest) if rule(rows + 1) > rule(rows)}


@pytest.mark.parametrize(("tile", "up_to"), [(8, 128), (16, 256), (32, 256), (64, 256), (128, 256)])
def test_every_step_is_found_until_the_time_is_over(tile, up_to):
    rule = tiled(tile)
    curve, device = found(rule)
    assert {edge for edge in curve.edges() if edge < up_to} == true_edges(rule, up_to)
    assert set(curve.edges()) <= true_edges(rule, 256)
    assert all(curve.at(rows) == pytest.approx(rule(rows)) for rows in range(1, up_to + 1))
    assert device.spent_s <= GROWTH * fixed_grid_s(rule)


def test_steps_at_odd_places_are_found():
    edges = [5, 6, 19, 23, 41, 100, 187]
    curve, _ = found(lambda rows: UNIT_S * (10 + sum(rows > edge for edge in edges)))
    assert set(curve.edges()) == set(edges)


def test_the_emulated_gpu_is_found_again():
    shape = {"num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3}
    emulated = emulated_device("emulated:gpu-emulated", heads_of({**shape, "hidden_size": 576}))
    dense = emulated.hardware.latency.dense
    curve, device = found(dense.at, largest=measured_rows(848))
    assert set(curve.edges()) >= set(range(16, 256, 16))
    assert set(curve.edges()) <= set(range(16, 512, 16))
    assert device.spent_s <= GROWTH * fixed_grid_s(dense.at)


@pytest.mark.parametrize("noise", [0.005, 0.01, 0.02])
@pytest.mark.parametrize("seed", range(5))
def test_noise_makes_no_steps_and_hides_no_high_one(noise, seed):
    rule = tiled(16, base=4)  # a fifth at first, a sixteenth near 256 rows
    device = Device(rule, noise, seed)
    curve = stepped_curve(device, 256, lambda _: None)
    real = true_edges(rule, 256)
    found = set(curve.edges())
    assert found >= {edge for edge in real if edge < 100}
    assert all(edge in real for edge in found if edge + 1 in curve.rows)
    assert device.spent_s <= 1.02 * GROWTH * fixed_grid_s(rule)


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_where_there_are_no_steps_none_are_found(noise):
    def rule(rows):
        return UNIT_S * max(4.0, 1.0 + rows / 8)

    curve, device = found(rule, largest=896, noise=noise)
    assert not [edge for edge in curve.edges() if edge + 1 in curve.rows]
    assert all(curve.at(rows) == pytest.approx(rule(rows), rel=0.06) for rows in (48, 100, 700))
    assert max(device.runs) == 896
    assert device.spent_s <= 2 * fixed_grid_s(rule)


def test_a_busy_machine_hides_no_high_step_of_the_grid():
    """One run in four takes three times as long: medians are right, and what differs is kept."""
    rule = tiled(6, base=2)
    calls = iter(range(10**6))
    curve, _ = found(lambda rows: rule(rows) * (3.0 if next(calls) % 4 == 3 else 1.0))
    assert {6, 12} <= set(curve.edges())
    assert curve.at(7) == pytest.approx(rule(7))


def test_a_slow_spell_makes_no_step():
    """The machine is a third slower after the grid."""
    rule = tiled(32, base=8)
    device = Device(rule)
    grid_runs = 4 * len(GRID)
    device.rule = lambda rows: rule(rows) * (1.33 if len(device.runs) >= grid_runs else 1.0)
    curve = stepped_curve(device, 256, lambda _: None)
    assert set(curve.edges()) == true_edges(rule, 256)
    assert all(curve.at(rows) == pytest.approx(rule(rows)) for rows in range(1, 257))


def test_long_runs_are_repeated_less():
    taken = sample(Device(lambda rows: 0.01 * rows, noise=0.05), [2, 192])
    assert (len(taken[2]), len(taken[192])) == (REPEATS, FEW_REPEATS)


@pytest.mark.parametrize(
    ("wanted", "rows"), [(1, 256), (256, 256), (257, 384), (848, 896), (2047, 2048), (9999, 2048)]
)
def test_rows_are_measured_up_to_what_an_iteration_can_have(wanted, rows):
    assert measured_rows(wanted) == rows
