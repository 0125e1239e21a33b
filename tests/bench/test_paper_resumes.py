"""`make simulate` cut off goes on where it stopped."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

import paper_runs
import report
from paper_cases import Case

BASE = Case("load", "yi-34b", "dailymails", 1, "ls_alone")


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """`kept()`: what is on disk."""
    monkeypatch.setattr(report, "OUT", tmp_path)
    return lambda: (tmp_path / "paper.rows.jsonl").read_text()


def rows(cases):
    return paper_runs.run_all(cases, 4.0, Console(file=io.StringIO()))


def test_finished_runs_are_kept_until_the_code_changes(kept, monkeypatch):
    first, before = rows([BASE]), kept()
    assert [row["rate"] for row in rows([replace(BASE, rate=2), BASE])] == [2, 1]
    assert kept().startswith(before)
    assert len(kept().split()) == 2
    assert rows([BASE]) == first
    monkeypatch.setattr(paper_runs, "code", lambda: "changed")
    rows([BASE])
    assert len(kept().split()) == 3


def test_a_run_that_two_parts_ask_for_is_made_once(kept):
    asked = [BASE, replace(BASE, part="bursty", ablation="as it is")]
    first, second = rows(asked)
    assert len(kept().split()) == 1
    assert (first["part"], second["part"]) == ("load", "bursty")
    assert first["ttft_attained_offered"] == second["ttft_attained_offered"]
    assert first["seed"] == 0


def test_refused_requests_are_tried_and_the_share_has_an_interval(kept, monkeypatch):
    monkeypatch.setattr(paper_runs, "REFUSALS_TRIED", 2)
    over = replace(BASE, policy="omniserve", rate=200, admission="reject")
    (row,) = rows([replace(over, tries_refused=True)])
    assert kept()
    low, high = row["refused_would_attain_interval"]
    assert low <= row["refused_would_attain"] <= high
    assert row["refused_tried"] == 2
