"""Which rows of paper.json are compared."""

from paper_rows import first_seeds, holds, pairs
from support.paper_rows import row

OWN, RIVAL = {"policy": "omniserve"}, {"policy": "static_headroom"}


def test_a_pair_is_of_one_seed():
    rows = [row("omniserve", 1.0, 10.0 + seed, seed=seed) for seed in (0, 1)]
    rows += [row("static_headroom", 1.0, 5.0, seed=seed) for seed in (1, 2)]
    ((own, other),) = pairs(rows, OWN, RIVAL)
    assert own["seed"] == other["seed"] == 1


def test_a_pair_may_differ_in_its_part_too():
    own = row("omniserve", 1.0, 1.0, "load", cpu_hosts=0)
    other = row("omniserve", 0.9, 1.0, "hosts", cpu_hosts=4)
    more = row("omniserve", 0.9, 1.0, "hosts", cpu_hosts=1)
    found = pairs([own, other, more], {"part": "load"}, {"part": "hosts", "cpu_hosts": 4})
    assert found == [(own, other)]


def test_without_ls_there_is_no_pair():
    assert not pairs([row("omniserve", None, 1.0), row("static_headroom", 1.0, 1.0)], OWN, RIVAL)


def test_of_a_tuple_one_is_enough():
    one = row("omniserve", 1.0, 1.0, "slo")
    assert holds(one, {"part": ("load", "slo"), "rate": 1})
    assert not holds(one, {"part": ("load", "slo"), "rate": 2})


def test_each_part_has_its_own_first_seed():
    rows = [row("omniserve", 1.0, 1.0, part, seed=s) for part, s in (("a", 0), ("a", 1), ("b", 5))]
    assert [(r["part"], r["seed"]) for r in first_seeds(rows)] == [("a", 0), ("b", 5)]
