"""The slow loop: misses widen the margin, quiet spells narrow it, both bounded and rate-limited."""

import pytest

from omniserve_agent.scheduling.error_budget import (
    BURN_HIGH,
    FIRST_SHARE,
    HIGHEST,
    LEAST_SAMPLES,
    LOWEST,
    PER_SECOND,
    SMALLEST_SHARE,
    WIDEST,
    ErrorBudget,
)


def judged(budget, outcomes, start_s=0.0, every_s=1.0):
    for number, attained in enumerate(outcomes):
        budget.judged(attained, start_s + number * every_s)
    return start_s + len(outcomes) * every_s


def test_burn_is_missed_over_allowed():
    budget = ErrorBudget(objective=0.9)
    judged(budget, [True] * (LEAST_SAMPLES - 1))
    assert budget.burn == 0.0  # too few to say
    judged(budget, [True] * 19 + [False], start_s=LEAST_SAMPLES)
    assert budget.burn == pytest.approx((1 / 39) / 0.1, rel=1e-6)


def test_misses_raise_the_quantile_and_then_widen_the_margin():
    budget = ErrorBudget(objective=0.95)
    judged(budget, [False] * 200)
    assert budget.quantile == HIGHEST
    assert 1.0 < budget.widening <= WIDEST


def test_what_is_not_used_is_given_to_be_slowly():
    budget = ErrorBudget(objective=0.99)
    before = budget.quantile
    judged(budget, [True] * (LEAST_SAMPLES + 10))
    assert before - 11 * PER_SECOND <= budget.quantile < before
    judged(budget, [True] * 1000, start_s=100.0)
    assert budget.quantile == LOWEST


def test_a_burst_within_a_second_moves_it_by_one_step_at_most():
    budget = ErrorBudget(objective=0.95)
    judged(budget, [True] * LEAST_SAMPLES, every_s=0.0)
    before = budget.quantile
    judged(budget, [False] * 100, every_s=0.001)
    assert budget.quantile <= before + PER_SECOND


def test_old_misses_leave_the_window():
    budget = ErrorBudget(objective=0.95, window_s=60.0)
    judged(budget, [False] * 30)
    judged(budget, [True] * 30, start_s=200.0)
    assert budget.burn == 0.0


def test_switched_off_it_still_measures():
    budget = ErrorBudget(objective=0.95, enabled=False)
    judged(budget, [False] * 100)
    assert budget.quantile == 0.95
    assert budget.burn > 1


def test_be_prompts_get_more_of_the_slack_while_the_budget_is_unused_and_less_while_it_burns():
    budget = ErrorBudget(window_s=60.0)
    assert budget.share == FIRST_SHARE
    for second in range(150):
        budget.judged(True, float(second))
    assert budget.share == 1.0
    for second in range(150, 200):
        budget.judged(second % 2 == 0, float(second))
    assert budget.share == pytest.approx(SMALLEST_SHARE)
    for second in range(200, 500):
        budget.judged(True, float(second))
    assert budget.share == 1.0


def test_a_burst_of_misses_takes_the_slack_back_before_the_long_window_shows_it():
    budget = ErrorBudget()
    for number in range(10 * 300):
        budget.judged(True, number / 10)
    assert budget.share == 1.0
    for number in range(10 * 10):
        budget.judged(number % 20 != 0, 300 + number / 10)
    assert budget.burn < BURN_HIGH
    assert budget.share < 0.75


def test_a_budget_that_is_off_leaves_the_share():
    budget = ErrorBudget(enabled=False)
    for second in range(100):
        budget.judged(False, float(second))
    assert budget.share == FIRST_SHARE
