"""The headline of paper.json: of each claim the best setting, with its range over seeds."""

import io

import pytest
from rich.console import Console

import paper_headline
from paper_cases import cases
from paper_headline import CLAIMS, Claim, further, headline, ratios
from support.paper_rows import row

RATIO = Claim("ratio", {"policy": "omniserve"}, {"policy": "static_headroom"})
CONTRACT = (  # names in `headline` of paper.json that its readers rely on
    "attainment_ratio",
    "be_ratio_four_hosts",
    "be_ratio_local",
    "be_ratio_10gbps",
    "be_ratio_light",
    "admission_attainment_gain_points",
)


def two(rate, own, other, seed=0):
    """A pair of BE rates in one setting."""
    found = row("omniserve", 1.0, own, rate=rate, seed=seed), row("static_headroom", 1.0, other)
    return [found[0], found[1] | {"rate": rate, "seed": seed}]


@pytest.fixture
def one_claim(monkeypatch):
    monkeypatch.setattr(paper_headline, "CLAIMS", (RATIO,))


@pytest.mark.usefixtures("one_claim")
def test_the_first_seed_chooses_the_setting_and_all_give_its_range():
    rows = [*two(1, 20.0, 10.0), *two(2, 30.0, 10.0), *two(1, 90.0, 10.0, seed=1)]
    rows += [*two(2, 20.0, 10.0, seed=1), *two(2, 25.0, 10.0, seed=2)]
    (found,) = ratios(rows)
    assert found["setting"]["rate"] == 2
    assert (found["low"], found["median"], found["high"]) == (2.0, 2.5, 3.0)
    assert found["seeds"] == [0, 1, 2]
    assert found["against"] == "static_headroom"
    assert headline([found]) == {"ratio": 2.5}
    console = Console(file=io.StringIO(), width=160, record=True)
    paper_headline.show(console, [found])
    assert "2.50 (2.00 to 3.00)" in console.export_text()


@pytest.mark.usefixtures("one_claim")
def test_a_rival_with_next_to_nothing_makes_no_ratio():
    assert ratios(two(1, 20.0, 0.5)) == []
    assert headline([]) == {"ratio": None}


def test_of_points_the_difference_counts():
    claim = Claim("points", {}, {}, "attained_offered", points=True)
    assert claim.value(row("a", 0.9, 1.0), row("b", 0.5, 1.0)) == pytest.approx(40.0)
    assert claim.value(row("a", None, 1.0), row("b", 0.5, 1.0)) is None


def test_the_contracts_figures_are_claimed_and_each_claim_has_settings():
    names = [claim.name for claim in CLAIMS]
    assert set(CONTRACT) <= set(names)
    assert len(set(names)) == len(names)
    figures = dict.fromkeys({claim.figure for claim in CLAIMS}, 0.5)
    rows = [case.labels() | figures | {"be_tokens_per_s": 2.0} for case in cases()]
    assert {found["name"] for found in ratios([r | {"ls_tokens_per_s": 2.0} for r in rows])} == set(
        names
    )


def test_further_seeds_are_of_the_settings_whose_ratio_is_a_headline():
    settings = [case for case in cases() if case.part == "bursty"]
    rows = [
        case.labels() | {"attained_offered": 1.0, "be_tokens_per_s": 1.0 + (case.model == "yi-34b")}
        for case in settings
    ]
    found = further(rows, ["bursty"], 2)
    assert {case.seed for case in found} == {1, 2}
    assert {"omniserve", "static_headroom"} <= {case.policy for case in found}
    assert {(case.part, case.arrivals) for case in found} == {("bursty", "bursty")}
    assert not further(rows, ["load"], 2)
