"""What drafts bring and cost in the simulator."""

import numpy as np
import pytest

from omniserve_agent.scheduling.draft_length import best_length, expected_tokens
from omniserve_agent.simulation.counted import Counted
from omniserve_agent.simulation.experiment import Experiment, Setting
from omniserve_agent.simulation.flights import Flights
from omniserve_agent.simulation.guesses import CHOSEN_EVERY_S, Guesses, read_tokens
from omniserve_agent.simulation.hardware import hardware
from omniserve_agent.simulation.hosts import Hosts
from omniserve_agent.simulation.workload import DECODE_HEAVY, backlog

MACHINE = hardware("h200-16core", "llama-3-8b")
LAYERS = MACHINE.latency.layers


def second_of(guesses, lanes, rows_in_flight=3200):
    """The choice after a second of 50 iterations in which half of the rows in flight came back."""
    hops = 25
    counts = Counted(
        iterations=50,
        busy_s=1.0,
        be_tokens=hops,
        be_host_tokens=hops,
        hops=hops,
        lanes=50 * lanes,
    )
    assert guesses.due(CHOSEN_EVERY_S)
    guesses.settle(CHOSEN_EVERY_S, counts, 0.001, LAYERS, rows_in_flight, False)
    return guesses.length


def test_no_guesses_where_lanes_bind_and_as_many_as_pay_where_rows_in_flight_do():
    assert second_of(Guesses(7), lanes=2) == 0
    assert second_of(Guesses(7), lanes=200) == best_length(0.5, 0.05, 7) > 0
    assert second_of(Guesses(2), lanes=200) == 2
    assert not Guesses(0).due(1e9)


def test_guesses_are_right_one_after_another():
    dice = np.random.default_rng(5)
    guesses = Guesses(7, 0.5)
    seen = [1 + guesses.right(3, dice.random()) for _ in range(20_000)]
    assert np.mean(seen) == pytest.approx(expected_tokens(0.5, 3), rel=0.02)
    assert set(seen) == {1, 2, 3, 4}
    assert guesses.right(0, 0.0) == 0


def test_rows_that_go_together_join_together():
    flights = Flights(8, LAYERS, Hosts(MACHINE.hosts, MACHINE.model, 1e9))
    flights.enter([1, 2, 3], [0, 0, 0], [read_tokens(100, 2)] * 3, [3, 1, 3], 0.0)
    assert (flights.rows, flights.longest) == (7, 3)
    later_s = 1.0
    assert len(flights.due(later_s, 1.0, 2)) == 0
    assert len(flights.due(later_s, 1.0, 3)) == 1
    due = flights.due(later_s, 1.0, 6)
    assert len(due) == 2  # 3 and 1; the third needs 7 lanes
    assert flights.joined(due)[0] == 4
    assert len(flights.due(later_s, 1.0, 7)) == 3


def test_a_guess_costs_the_host_a_tenth():
    assert read_tokens(100, 0) == 100
    assert read_tokens(100, 3) == pytest.approx(130)


def be_tokens(**drafts):
    """Of a run without LS on the host alone, where rows in flight bind."""
    setting = Setting(
        seconds=14.0, warm_up_s=4.0, be_device_residency=False, sweeps=False, be_open=40, **drafts
    )
    return Experiment(MACHINE, setting, (), backlog(1, DECODE_HEAVY)).run().be_tokens_per_s


def test_right_guesses_bring_tokens():
    plain = be_tokens()
    assert be_tokens(drafts=7, acceptance=0.9) > 2 * plain
    assert be_tokens(drafts=7, acceptance=0.0) == pytest.approx(plain, rel=0.05)
