"""The slow loop: misses withhold slack and widen the margin, quiet spells give both back."""

import pytest

from omniserve_agent.scheduling.error_budget import (
    HIGHEST,
    LEAST_SAMPLES,
    LOWEST,
    MISS_STEP,
    MOST_SAMPLES,
    RISING,
    SMALLEST_SHARE,
    USED,
    WIDEST,
    ErrorBudget,
    Window,
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


def test_misses_withhold_the_slack_then_raise_the_quantile_and_widen_the_margin():
    budget = ErrorBudget(objective=0.95)
    before = budget.share
    judged(budget, [False] * 3)
    assert budget.share < before
    assert budget.widening <= 1.0 + (WIDEST - 1.0) * 0.61
    judged(budget, [False] * 10, start_s=100.0)
    assert budget.share == pytest.approx(SMALLEST_SHARE)
    assert budget.quantile == pytest.approx(HIGHEST)
    assert budget.widening == pytest.approx(WIDEST)


def test_what_is_not_used_is_given_to_be_slowly():
    budget = ErrorBudget(objective=0.99)
    before = budget.share
    judged(budget, [True] * (LEAST_SAMPLES + 10))
    assert before < budget.share <= before + 31 * RISING
    judged(budget, [True] * 1000, start_s=100.0)
    assert budget.share == 1.0
    assert budget.quantile == pytest.approx(LOWEST)


def test_a_burst_within_a_second_moves_it_by_one_step():
    budget = ErrorBudget(objective=0.95)
    before = budget.share
    judged(budget, [False] * 100, every_s=0.001)
    assert before - MISS_STEP <= budget.share < before


def test_it_settles_where_half_of_the_error_budget_is_used():
    """Misses at that rate, spread evenly, leave the level where it is; fewer raise it."""
    every = round(1 / (USED * 0.01))
    start_s = 0.0
    shares = []
    for rate in (every, 2 * every):
        budget = ErrorBudget(objective=0.99, window_s=3600.0)
        start_s = judged(budget, [False] + [True] * (LEAST_SAMPLES), start_s)
        before = budget.share
        judged(budget, ([True] * (rate - 1) + [False]) * 6, start_s)
        shares.append(budget.share - before)
    assert shares[0] == pytest.approx(0.0, abs=1e-9)
    assert shares[1] > 0.2


def test_what_was_missed_long_ago_holds_nothing_down():
    """Misses of a cold start are in the window still; since then half of what is allowed."""
    budget = ErrorBudget(objective=0.99, window_s=1e6)
    end_s = judged(budget, [False] * 30 + [True] * 500)
    low = budget.share
    judged(budget, ([True] * 399 + [False]) * 20, end_s)
    assert budget.burn > 0.5
    assert budget.share > low + 0.4


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


def test_a_budget_that_is_off_restrains_nothing():
    budget = ErrorBudget(enabled=False)
    for second in range(100):
        budget.judged(False, float(second))
    assert (budget.share, budget.widening) == (1.0, 1.0)


def test_the_memory_of_a_window_is_bounded():
    window = Window(3600.0)
    for number in range(MOST_SAMPLES + 10):
        window.judged(number >= 10, number / 1000)
    assert len(window._judged) == MOST_SAMPLES
    assert window.clean
