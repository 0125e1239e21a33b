"""How one run of `make simulate` is made."""

import pytest

import paper_runs
from paper_cases import STEADY, Case


@pytest.fixture
def ran(monkeypatch):
    """Policies and seconds of what was simulated; a quarter held back brings more BE."""
    found = []

    def run(case, policy, seconds):
        found.append((policy, seconds))
        return {"attained_offered": 1.0, "be_tokens_per_s": 1.0 + policy.endswith("quarter")}

    monkeypatch.setattr(paper_runs, "_run", run)
    return found


def case(part, policy="static_headroom"):
    return Case(part, "llama-2-70b", "decode-heavy", 5, policy)


def test_of_two_headrooms_the_better_one_is_kept(ran):
    assert paper_runs.run(case("load"), 200.0)["be_tokens_per_s"] == 2.0
    assert ran == [("static_headroom", 200.0), ("static_headroom_quarter", 200.0)]


def test_before_a_long_run_a_trial_chooses_the_headroom(ran):
    paper_runs.run(case(STEADY), 200.0)
    trial = [("static_headroom", 600.0), ("static_headroom_quarter", 600.0)]
    assert ran == [*trial, ("static_headroom_quarter", 5400.0)]


def test_every_other_policy_runs_once(ran):
    paper_runs.run(case(STEADY, "omniserve"), 200.0)
    assert ran == [("omniserve", 5400.0)]
