"""Every LS service has its error budget by its own objective; the most demanding one rules."""

import pytest

from omniserve_agent.scheduling.error_budget import HIGHEST, SMALLEST_SHARE, ErrorBudget
from omniserve_agent.scheduling.error_budgets import (
    KEPT_OBJECTIVES,
    ErrorBudgets,
    Objective,
    ruling,
)

FIRST = ErrorBudget()


def told(budgets, service, outcomes, start_s=0.0, every_s=1.0):
    for number, attained in enumerate(outcomes):
        budgets.judged(service, attained, start_s + number * every_s)
    return start_s + len(outcomes) * every_s


def figures(one):
    return (one.quantile, one.widening, one.share)


def test_one_service_rules_as_its_budget_says():
    budgets, alone = ErrorBudgets(), ErrorBudget(0.9, 60.0)
    assert figures(budgets) == figures(ErrorBudget())
    budgets.arrived("a", Objective(0.9, 60.0), 0.0)
    assert figures(budgets) == figures(alone)
    for number in range(200):
        attained = number % 3 != 0
        alone.judged(attained, float(number))
        budgets.judged("a", attained, float(number))
        assert figures(budgets) == figures(alone)
    assert budgets.burn == alone.burn > 1.0


def test_an_objective_rules_by_its_own_share_and_window():
    lenient, strict = ErrorBudgets(), ErrorBudgets()
    lenient.arrived("a", Objective(0.5, 10.0), 0.0)
    strict.arrived("a", Objective(), 0.0)
    for budgets in (lenient, strict):
        told(budgets, "a", [number % 10 != 0 for number in range(300)], every_s=0.1)
    assert lenient.burn == pytest.approx(0.2, abs=0.01)
    assert strict.burn == pytest.approx(10.0)
    assert lenient.share > FIRST.share > strict.share
    told(lenient, "a", [True] * 110, start_s=30.0, every_s=0.1)
    assert lenient.burn == 0.0  # its window has passed; the other's has not
    told(strict, "a", [True] * 110, start_s=30.0, every_s=0.1)
    assert strict.burn > 5.0


def test_the_most_demanding_rules_figure_by_figure():
    burning, unused = ErrorBudget(0.6), ErrorBudget()
    for second in range(100):
        if second < 2:
            burning.judged(False, float(second))
        unused.judged(True, float(second))
    assert burning.quantile < unused.quantile  # by its objective it asks for less
    assert burning.share < FIRST.share < unused.share
    ruled = ruling([unused, burning])
    assert figures(ruled) == (unused.quantile, burning.widening, burning.share)
    assert ruled == ruling([burning, unused])


def test_one_service_burning_is_not_hidden_by_the_traffic_of_another():
    budgets = ErrorBudgets()
    for second in range(100):
        told(budgets, "busy", [True] * 50, float(second), 0.02)
        budgets.judged("small", False, second + 0.99)
    assert budgets.burns() == pytest.approx({"busy": 0.0, "small": 100.0})
    assert budgets.burn == pytest.approx(100.0)
    assert (budgets.share, budgets.quantile) == pytest.approx((SMALLEST_SHARE, HIGHEST))
    assert budgets.widening > 1.0


def test_a_service_that_knows_too_little_does_not_hold_the_others_back():
    budgets = ErrorBudgets()
    end_s = told(budgets, "busy", [True] * 150)
    before = figures(budgets)
    assert budgets.share == 1.0
    budgets.arrived("small", Objective(), end_s)
    budgets.judged("small", True, end_s)
    assert figures(budgets) == before


def test_while_nobody_knows_enough_the_strictest_objective_rules():
    budgets = ErrorBudgets()
    budgets.arrived("a", Objective(0.7), 0.0)
    assert budgets.quantile == 0.7
    budgets.arrived("b", Objective(0.9), 1.0)
    assert figures(budgets) == (0.9, 1.0, FIRST.share)


def test_a_service_that_ended_rules_until_its_window_has_passed():
    budgets = ErrorBudgets()
    budgets.arrived("ended", Objective(0.9, 60.0), 0.0)
    end_s = told(budgets, "ended", [False] * 50)
    end_s = told(budgets, "there", [True] * 50, end_s - 50)
    assert budgets.share < FIRST.share
    budgets.settle(end_s + 58.0)
    assert budgets.share < FIRST.share
    budgets.settle(end_s + 60.0)
    assert budgets.share > FIRST.share
    assert set(budgets.burns()) == {"there"}
    budgets.settle(end_s + 300.0)
    assert (figures(budgets), budgets.burn) == (figures(ErrorBudget()), 0.0)
    budgets.judged("ended", True, end_s + 301.0)  # it came long before; its objective is known
    assert budgets.quantile == 0.9


def test_after_a_bad_minute_few_requests_without_a_miss_begin_anew():
    budgets = ErrorBudgets()
    end_s = told(budgets, "a", [False] * 60)
    low = budgets.share
    assert low < FIRST.share
    for _ in range(9):
        budgets.judged("a", True, end_s + 290.0)
        assert budgets.share <= FIRST.share - 0.2
    budgets.judged("a", True, end_s + 301.0)
    assert figures(budgets) == figures(FIRST)


def test_a_changed_objective_begins_anew():
    budgets = ErrorBudgets()
    budgets.arrived("a", Objective(0.5), 0.0)
    end_s = told(budgets, "a", [number % 10 != 0 for number in range(100)])
    assert budgets.burn == pytest.approx(0.2)
    budgets.arrived("a", Objective(0.9), end_s)
    assert (figures(budgets), budgets.burn) == (figures(ErrorBudget(0.9)), 0.0)


def test_memory_is_bounded():
    budgets = ErrorBudgets()
    for number in range(KEPT_OBJECTIVES + 20):
        budgets.arrived(f"s{number}", Objective(0.9, 10.0), 0.0)
    budgets.settle(20.0)
    assert (len(budgets._services), len(budgets._silent)) == (0, KEPT_OBJECTIVES)
