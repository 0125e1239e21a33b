"""`make simulate` cut off goes on where it stopped."""

import io

from rich.console import Console

import paper
import report


def test_finished_runs_are_kept_until_the_code_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "OUT", tmp_path)
    base = paper.Case("load", "yi-34b", "dailymails", 1, "ls_alone")
    console = Console(file=io.StringIO())

    def rows(cases):
        return paper.run_all(cases, 4.0, 0, console, 1)

    first = rows([base])
    kept = (tmp_path / "paper.rows.jsonl").read_text()
    other = paper.replace(base, rate=2)
    assert [row["rate"] for row in rows([other, base])] == [2, 1]
    grown = (tmp_path / "paper.rows.jsonl").read_text()
    assert grown.startswith(kept)
    assert len(grown.split()) == 2
    assert rows([base]) == first
    monkeypatch.setattr(paper, "code", lambda: "changed")
    rows([base])
    assert len((tmp_path / "paper.rows.jsonl").read_text().split()) == 3
