"""Attainment, hysteresis, throttling, rounding: tables and properties."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniserve_crds.conditions import ConditionStatus, Reason
from omniserve_crds.llmservice import Slo
from omniserve_crds.servingnode import BeWindow, LsWindow
from omniserve_operator.attainment import (
    Finding,
    Measured,
    Totals,
    Verdict,
    finding,
    totals,
    two_digits,
    with_hysteresis,
)
from omniserve_operator.freshness import Freshness
from omniserve_operator.throttling import throttling

SLO = Slo(ttftMs=500, tpotMs=50, objectivePercent=99, window="10s", minSamples=20)
TRUE, FALSE, UNKNOWN = ConditionStatus.TRUE, ConditionStatus.FALSE, ConditionStatus.UNKNOWN


@pytest.mark.parametrize(
    ("sums", "reporting", "status", "reason"),
    [
        ({}, True, UNKNOWN, Reason.NO_TRAFFIC),
        ({"offered": 50, "attained": 50}, False, UNKNOWN, Reason.MEASUREMENT_STALE),
        ({"offered": 19, "attained": 0}, True, UNKNOWN, Reason.INSUFFICIENT_SAMPLES),
        ({"offered": 100, "attained": 99}, True, TRUE, Reason.ATTAINED),
        ({"offered": 100, "attained": 98, "ttft_missed": 2}, True, FALSE, Reason.TTFT_MISSED),
        ({"offered": 100, "attained": 98, "tpot_missed": 2}, True, FALSE, Reason.TPOT_MISSED),
        (
            {"offered": 100, "attained": 90, "ttft_missed": 5, "tpot_missed": 5},
            *(True, FALSE, Reason.TTFT_AND_TPOT_MISSED),
        ),
        (
            {"offered": 100, "attained": 90, "refused": 6, "tpot_missed": 4},
            *(True, FALSE, Reason.REFUSED_FOR_CAPACITY),
        ),
        (
            {"offered": 100, "attained": 90, "failed": 10},
            *(True, FALSE, Reason.REFUSED_FOR_CAPACITY),
        ),
    ],
)
def test_findings(sums, reporting, status, reason):
    found = finding(Totals(**sums), SLO, reporting)
    assert (found.status, found.reason) == (status, reason)


def test_the_message_has_the_figures():
    windows = [
        Measured("n1", LsWindow(offered=900, attained=890, tpotMsP99=40, ttftMsP99=700)),
        Measured("n2", LsWindow(offered=334, attained=250, tpotMsP99=61, refused=7)),
    ]
    found = finding(totals(windows), SLO, True)
    assert found.message == (
        "92.4 % of 1200 requests attained within 10s (objective 99 %); TTFT p99 700 of 500 ms on "
        "n1; TPOT p99 61 of 50 ms on n2; 7 refused or failed"
    )


def test_attainment_is_a_sum_over_a_sum():
    sums = totals(
        [
            Measured("n1", LsWindow(offered=1000, attained=1000)),
            Measured("n2", LsWindow(offered=10, attained=0)),
        ]
    )
    assert sums.attained_percent == pytest.approx(100 * 1000 / 1010)


def good(message="fine"):
    return Finding(TRUE, Reason.ATTAINED, message)


def bad():
    return Finding(FALSE, Reason.TPOT_MISSED, "slow")


def told(steps, first=None):
    """The statuses after each (finding, at second)."""
    verdict, statuses = first or Verdict(), []
    for found, at_s in steps:
        verdict = with_hysteresis(verdict, found, SLO, at_s)
        statuses.append(verdict.status)
    return statuses


@pytest.mark.parametrize(
    ("steps", "statuses"),
    [
        ([(good(), 0), (bad(), 1), (bad(), 10)], [TRUE, TRUE, TRUE]),
        ([(good(), 0), (bad(), 1), (bad(), 11)], [TRUE, TRUE, FALSE]),
        # A good look in between begins the count anew.
        ([(good(), 0), (bad(), 1), (good(), 5), (bad(), 6), (bad(), 15)], [TRUE] * 5),
        ([(bad(), 0), (good(), 1), (good(), 11)], [FALSE, FALSE, TRUE]),
        ([(bad(), 0)], [FALSE]),
    ],
)
def test_hysteresis_of_one_more_window(steps, statuses):
    assert told(steps) == statuses


def test_unknown_comes_and_goes_at_once():
    quiet = Finding(UNKNOWN, Reason.NO_TRAFFIC, "")
    assert told([(good(), 0), (quiet, 1), (bad(), 2)]) == [TRUE, UNKNOWN, FALSE]


def test_while_it_counts_the_figures_are_todays():
    verdict = with_hysteresis(Verdict(TRUE, Reason.ATTAINED, "old"), bad(), SLO, 5)
    assert (verdict.status, verdict.reason) == (TRUE, Reason.ATTAINED)
    assert verdict.message.startswith("slow; True until")


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 8)), max_size=40))
def test_a_flip_needs_a_whole_window_of_the_other_verdict(looks):
    now_s, verdict, last_same_s = 0, Verdict(), None
    for attained, pause_s in looks:
        now_s += pause_s
        before = verdict.status
        verdict = with_hysteresis(verdict, good() if attained else bad(), SLO, now_s)
        wanted = TRUE if attained else FALSE
        if before is UNKNOWN:
            assert verdict.status is wanted
        elif verdict.status is not before:
            assert now_s - last_same_s > SLO.window_s
        if wanted is verdict.status:
            last_same_s = now_s


@pytest.mark.parametrize(
    ("value", "rounded"), [(0, 0), (99, 99), (104, 100), (1234, 1200), (98765, 99000)]
)
def test_two_digits(value, rounded):
    assert two_digits(value) == rounded


@given(st.integers(0, 10**12))
def test_rounding_is_within_five_percent(value):
    assert abs(two_digits(value) - value) <= 0.05 * value


@pytest.mark.parametrize(
    ("percent", "before", "status"),
    [(10, FALSE, TRUE), (9, FALSE, FALSE), (9, TRUE, TRUE), (3, TRUE, FALSE), (0, UNKNOWN, FALSE)],
)
def test_throttling_has_a_band(percent, before, status):
    window = BeWindow(throttled_percent=percent, throttled_by=["default/chat"])
    assert throttling([window], before, True).status is status


def test_throttling_without_a_report_is_unknown():
    assert throttling([], TRUE, False).reason is Reason.MEASUREMENT_STALE


# ---- the operator's own clock ----------------------------------------------------------------


def test_only_a_change_is_a_sign_of_life():
    fresh = Freshness(0)
    fresh.observe("n1", "a", 0)
    for now_s in range(0, 50, 5):
        fresh.contact(now_s)
        fresh.observe("n1", "a", now_s)
    assert fresh.silent_s("n1", 50) == 50
    fresh.observe("n1", "b", 51)
    assert fresh.silent_s("n1", 53) == 2
    assert fresh.silent_s("n2", 53) is None


def test_time_without_the_api_server_does_not_count():
    fresh = Freshness(0)
    fresh.observe("n1", "a", 0)
    fresh.contact(5)
    assert fresh.silent_s("n1", 90) == 5  # away since 5, and known to be
    fresh.contact(95)
    assert fresh.silent_s("n1", 95) == 5
    fresh.contact(100)
    assert fresh.silent_s("n1", 105) == 15
