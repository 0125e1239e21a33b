"""Draft length: the expected yield, and the choice it leads to."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniserve_agent.scheduling.draft_length import Acceptance, best_length, expected_tokens


def test_expected_tokens_agree_with_trials():
    dice, total = random.Random(1), 0
    for _ in range(20_000):
        total += 1
        for _ in range(4):
            if dice.random() >= 0.6:
                break
            total += 1
    assert total / 20_000 == pytest.approx(expected_tokens(0.6, 4), rel=0.02)
    assert expected_tokens(1.0, 7) == 8


@pytest.mark.parametrize(
    ("acceptance", "row_cost", "length"),
    [(0.9, 0.0, 7), (0.0, 0.0, 0), (0.9, 1.0, 0), (1.0, 0.5, 7), (0.3, 0.2, 1)],
)
def test_best_length(acceptance, row_cost, length):
    assert best_length(acceptance, row_cost, 7) == length


@given(st.floats(0, 0.99), st.floats(0, 1), st.integers(0, 7))
def test_a_dearer_row_never_lengthens_the_draft(acceptance, row_cost, longest):
    cheap = best_length(acceptance, row_cost / 2, longest)
    assert best_length(acceptance, row_cost, longest) <= cheap <= longest


def test_acceptance_judges_only_what_was_tested():
    seen = Acceptance(share=0.5)
    for _ in range(60):
        seen.observe(proposed=7, accepted=1)  # one right, one wrong, five unknown
    assert seen.share == pytest.approx(0.5, abs=0.01)
    for _ in range(60):
        seen.observe(proposed=3, accepted=3)
    assert seen.share == pytest.approx(1.0, abs=0.01)
    seen.observe(proposed=0, accepted=0)
    assert seen.share == pytest.approx(1.0, abs=0.01)
