"""Expected output lengths, and which ceiling binds."""

from dataclasses import replace

import pytest

from omniserve_agent.scheduling.ceiling import BeFlow, binding, ceilings
from omniserve_agent.scheduling.lengths import PRIOR_TOKENS, OutputLengths

FLOW = BeFlow(
    rows_in_flight=16,
    tokens_per_hop=1,
    rows_per_hop=1,
    layers=31,
    iteration_s=0.02,
    waited_share=0.0,
    lanes=16,
    output_tokens_per_s=20,
    host_tokens_per_s=20,
    host_busy_share=0.25,
    prefill_tokens_per_s=1000,
    output_per_prompt_token=0.5,
    prefilling=False,
)
ON_DEVICE = {"rows_in_flight": 0, "host_busy_share": 0, "host_tokens_per_s": 0}


def test_lengths_start_with_a_prior_and_become_a_quantile():
    lengths = OutputLengths(window=20, min_samples=5)
    assert lengths.expected("a") == PRIOR_TOKENS
    for tokens in range(1, 11):
        lengths.observe("a", tokens)
    assert lengths.expected("a") == 10
    assert lengths.expected("b") == PRIOR_TOKENS


def test_lengths_forget_what_is_outside_the_window():
    lengths = OutputLengths(window=10, min_samples=5)
    for tokens in [900] * 10 + [3] * 10:
        lengths.observe("a", tokens)
    assert lengths.expected("a") == 3


def test_rows_in_flight_bind_when_the_host_is_idle():
    assert ceilings(FLOW) == pytest.approx(
        {"iterations": 25.0, "dense_rows": 800.0, "host_bandwidth": 80.0}
    )
    assert binding(FLOW) == "iterations"


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"host_busy_share": 1.0}, "host_bandwidth"),
        ({"rows_in_flight": 900, "lanes": 1, "host_busy_share": 0.01}, "dense_rows"),
        ({"prefilling": True, "prefill_tokens_per_s": 10}, "prefill"),
        (ON_DEVICE, "device"),
        (
            ON_DEVICE | {"prefilling": True},
            "prefill",
        ),
        (
            {
                "rows_in_flight": 0,
                "host_busy_share": 0,
                "host_tokens_per_s": 0,
                "output_tokens_per_s": 0,
            },
            "none",
        ),
    ],
)
def test_the_smallest_ceiling_binds(change, name):
    assert binding(replace(FLOW, **change)) == name


def test_what_the_device_puts_out_by_itself_is_no_host_rate():
    mixed = replace(FLOW, output_tokens_per_s=100)
    assert ceilings(mixed) == pytest.approx(
        {"iterations": 80 + 25.0, "dense_rows": 80 + 800.0, "host_bandwidth": 80 + 80.0}
    )


def test_wrong_guesses_take_lanes():
    drafting = replace(FLOW, tokens_per_hop=1.75, rows_per_hop=3)
    assert ceilings(drafting)["dense_rows"] == pytest.approx(800 * 1.75 / 3)
    assert ceilings(drafting)["iterations"] == pytest.approx(25 * 1.75)


def test_an_iteration_that_waits_brings_a_token_of_every_row():
    swept = replace(FLOW, waited_share=1.0)
    assert ceilings(swept)["iterations"] == pytest.approx(16 / 0.02)
    assert binding(replace(swept, lanes=8, host_busy_share=0.01)) == "dense_rows"
