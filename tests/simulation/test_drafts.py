"""What drafts bring and cost in the simulator."""

from dataclasses import replace

import pytest

from omniserve_agent.engine.prompt_lookup import ROW_COST
from omniserve_agent.simulation.experiment import DRAFT_HOST_COST, Setting, node_for
from omniserve_agent.simulation.hardware import hardware

MACHINE = hardware("h200-16core", "llama-3-8b")
TWO = Setting(drafts=2, acceptance=0.5)


def test_a_hop_brings_a_token_and_the_right_guesses():
    assert Setting().tokens_per_hop == 1.0
    assert TWO.tokens_per_hop == 1.75
    assert node_for(MACHINE, TWO).tokens_per_hop == 1.75


def test_guesses_cost_the_host_as_the_engine_prices_them():
    assert ROW_COST["host_bandwidth"] == DRAFT_HOST_COST
    plain, drafting = (node_for(MACHINE, s).hosts.pools[0] for s in (Setting(), TWO))
    assert drafting.read_bytes_per_s == pytest.approx(plain.read_bytes_per_s / 1.2)
    assert drafting.kv_bytes == plain.kv_bytes


def test_guesses_cost_the_device_their_arithmetic():
    plain, drafting = (node_for(MACHINE, s).hardware.latency for s in (Setting(), TWO))
    row_s = (plain.dense.at(8192) - plain.dense.at(4096)) / 4096
    assert row_s > 0
    assert drafting.join - plain.join == pytest.approx(2 * row_s)
    assert replace(drafting, join=plain.join) == plain
