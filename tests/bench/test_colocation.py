"""The co-location benchmark's arithmetic, its memory of finished cells and what it writes."""

import pytest

import colocation
import colocation_code
import report
from colocation_client import CellFigures, LsResult
from colocation_figures import (
    Slo,
    attainment_difference,
    be_ratio,
    calibrate,
    not_rising,
    row,
)
from colocation_report import Run, rows_and_ratios, table
from colocation_setup import ABLATIONS, CPU, CUDA, EMULATED, POLICY_ROWS
from colocation_traces import LONG_EVERY, be_backlog, ls_trace
from omniserve_agent import cli
from store import Store, digest_of_files

SLO = Slo(100.0, 10.0)


def seen(ttft_ms=50.0, tpot_ms=5.0, status=200, at_s=0.0):
    return LsResult(at_s, status, ttft_ms, tpot_ms, 20, 0.0)


def cell(requests, be_tokens=0, seconds=10.0):
    return CellFigures(
        requests=requests,
        seconds=seconds,
        be_tokens=be_tokens,
        overflow_tokens=0,
        ceilings={"prefill": 2, "iterations": 1},
        engine={},
        client_cpu_share=0.0,
    )


@pytest.mark.parametrize(
    ("result", "attained"),
    [
        (seen(), True),
        (seen(ttft_ms=101), False),
        (seen(tpot_ms=10.1), False),
        (seen(tpot_ms=None), True),
        (seen(ttft_ms=None, status=0), False),
        (seen(status=429), False),
    ],
)
def test_attaining(result, attained):
    assert SLO.attained(result) is attained


def test_a_row_counts_refusals_as_offered():
    made = row([cell([seen(), seen(tpot_ms=20), seen(status=429), seen(status=503)], 100)], SLO)
    assert (made["offered"], made["attained_offered"], made["attained_finished"]) == (4, 0.25, 0.5)
    assert (made["refused_share"], made["failed_share"]) == (0.25, 0.25)
    assert (made["be_tokens_per_s"], made["ceiling"]) == (10.0, "prefill")
    assert (made["tpot_ms_p50"], made["tpot_ms_p99"]) == (5, 20)
    assert made["commits"] == [""]


def test_the_slo_and_the_highest_rate_fit_each_other():
    """TPOT 10 ms at every rate, 99 % up to 6 requests per second, nothing at 8."""
    good = cell([seen(ttft_ms=10, tpot_ms=10)] * 100)
    bad = cell([seen(ttft_ms=1000, tpot_ms=10)] * 100)
    found = calibrate(good, {2.0: good, 6.0: good, 8.0: bad})
    assert (found.slo.ttft_ms, found.slo.tpot_ms) == (30.0, 15.0)
    assert found.highest_rate == pytest.approx(6.0, abs=0.05)
    assert found.rates["heavy"] == pytest.approx(0.85 * found.highest_rate)


def test_a_lucky_stretch_at_a_high_rate_does_not_count():
    """98 % at 6 and all of as many at 8: 99 % at both is as likely as any; 97 % at 6 is not."""
    good, bad = seen(ttft_ms=10, tpot_ms=10), seen(ttft_ms=1000, tpot_ms=10)
    all_good = cell([good] * 100)
    found = calibrate(all_good, {2.0: all_good, 6.0: cell([good] * 98 + [bad] * 2), 8.0: all_good})
    assert found.highest_rate == pytest.approx(8.0, abs=0.05)
    found = calibrate(all_good, {2.0: all_good, 6.0: cell([good] * 97 + [bad] * 3), 8.0: all_good})
    assert 3.0 < found.highest_rate < 6.0


def test_the_fit_never_rises():
    found = not_rising({1.0: 1.0, 2.0: 0.5, 3.0: 0.9, 4.0: 0.4}, {1.0: 1, 2.0: 1, 3.0: 3, 4.0: 1})
    assert found == pytest.approx({1.0: 1.0, 2.0: 0.8, 3.0: 0.8, 4.0: 0.4})


def test_a_range_of_rates_that_nobody_attains_is_an_error():
    bad = cell([seen(ttft_ms=1000)] * 10)
    with pytest.raises(ValueError, match=r"none of \[2\.0\].*search lower rates"):
        calibrate(cell([seen(ttft_ms=10)]), {2.0: bad})


def test_differences_are_of_the_same_requests():
    ours = [cell([seen(at_s=s) for s in range(50)])]
    theirs = [cell([seen(at_s=s, tpot_ms=20 if s % 10 == 0 else 5) for s in range(50)])]
    found = attainment_difference(ours, theirs, SLO, seed=1)
    assert found["median"] == pytest.approx(10.0)
    assert found["low"] <= 10.0 <= found["high"]
    assert found == attainment_difference(ours, theirs, SLO, seed=1)
    assert attainment_difference(ours, ours, SLO, 1) == {"median": 0, "low": 0, "high": 0}


def test_ratios_are_paired_over_rounds():
    ours, theirs = ([cell([], n) for n in tokens] for tokens in ([30, 20, 10], [10, 10, 10]))
    assert be_ratio(ours, theirs) == {"median": 2.0, "low": 1.0, "high": 3.0}
    assert be_ratio(ours, [cell([])] * 3) is None


def test_finished_cells_survive_and_a_torn_line_does_not(tmp_path):
    path = tmp_path / "out" / "cells.jsonl"
    first, second = {"policy": "a", "round": 0}, {"policy": "a", "round": 1}
    Store(path, CellFigures).add(first, cell([seen()], 5))
    path.write_bytes(path.read_bytes() + b'\n{"key": {"policy"')
    store = Store(path, CellFigures)
    assert store.find(dict(reversed(first.items()))) == cell([seen()], 5)
    assert store.find(second) is None
    store.add(second, cell([]))
    assert Store(path, CellFigures).find(second) == cell([])


def test_cells_that_do_not_count_are_kept_apart_and_counted(tmp_path):
    path, key = tmp_path / "cells.jsonl", {"policy": "a", "round": 0}
    store = Store(path, CellFigures)
    store.discard(key, cell([seen()]))
    store.discard(key, cell([seen()]))
    assert (store.find(key), store.discarded(key)) == (None, 2)
    assert Store(path, CellFigures).discarded(dict(reversed(key.items()))) == 2
    assert Store(path, CellFigures).discarded({"policy": "b", "round": 0}) == 0


def test_traces_are_seeded_and_follow_the_sizes():
    sizes = EMULATED.sizes
    trace = ls_trace(sizes, "poisson", 20.0, 10.0, (1, 2))
    assert trace == ls_trace(sizes, "poisson", 20.0, 10.0, (1, 2))
    assert trace != ls_trace(sizes, "poisson", 20.0, 10.0, (1, 3))
    assert 100 < len(trace) < 300
    low, high = sizes.ls_prompt
    assert all(low <= len(r.prompt) <= high and r.at_s < 10.0 for r in trace)


def test_the_backlog_begins_in_the_middle_and_has_long_prompts():
    sizes, backlog = EMULATED.sizes, be_backlog(EMULATED.sizes, 1, 40)
    first = [next(backlog) for _ in range(40)]
    later = [next(backlog) for _ in range(40)]
    assert sum(r.choices > 1 for r in first) == 40 // LONG_EVERY
    assert min(r.output for r in first if r.choices == 1) < sizes.be_output[0]
    assert all(r.output >= sizes.be_output[0] for r in later if r.choices == 1)


def test_a_change_in_any_file_under_a_folder_is_another_digest(tmp_path):
    (tmp_path / "data" / "__pycache__").mkdir(parents=True)
    (tmp_path / "data" / "a.toml").write_text("1")
    before = digest_of_files([tmp_path])
    (tmp_path / "data" / "__pycache__" / "a.pyc").write_text("1")
    assert digest_of_files([tmp_path]) == before
    (tmp_path / "data" / "a.toml").write_text("2")
    assert digest_of_files([tmp_path]) != before


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """The files that a cell depends on, and one of documentation."""
    names = ("agent/omniserve_agent/a.py", "native/src/a.c", "native/omniserve_native/build.py")
    for name in (*names, "native/include/a.h", "docs/a.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("before")
    monkeypatch.setattr(report, "ROOT", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("changed", "again"),
    [
        ("agent/omniserve_agent/a.py", True),
        ("native/src/a.c", True),
        ("native/include/a.h", True),
        ("native/omniserve_native/build.py", True),
        ("docs/a.md", False),
    ],
)
def test_a_cell_is_measured_again_where_its_code_changes(tree, changed, again):
    def key():
        plan = colocation.Plan(
            EMULATED, (), (), (), 1, 1.0, 1.0, 0, colocation_code.code(), "a-dirty"
        )
        return plan.key(POLICY_ROWS[0], "heavy", 1.0, 2.0, 0)

    before = key()
    assert key() == before
    (tree / changed).write_text("after")
    assert (key() != before) is again


def test_files_of_the_benchmark_that_shape_a_cell_exist():
    for name in colocation_code.SHAPING:
        assert (report.ROOT / "bench" / name).is_file(), name


def test_each_device_has_a_result_file_of_its_own():
    names = [colocation.result_name(device) for device in (EMULATED, CPU, CUDA)]
    assert names == ["colocation", "colocation_cpu", "colocation_cuda"]


def test_the_factor_and_the_objective_of_the_device_are_told():
    good = cell([seen(ttft_ms=10, tpot_ms=10)] * 100)
    calibration = calibrate(good, {2.0: good}, CPU.tpot_factor, CPU.objective)
    measured = cell([seen()], 100)
    measured.commit = "abc"
    run = Run(CPU, calibration, {("heavy", "omniserve"): [measured]}, 0)
    contents = rows_and_ratios(run)
    assert (contents["slo"]["tpot_factor"], contents["slo"]["ttft_factor"]) == (3.0, 3.0)
    assert contents["objective"] == 0.9
    assert contents["rows"][0]["commits"] == ["abc"]
    head, _ = table(run, contents)
    assert "3 times ls_alone's median" in head
    assert "90% (the objective)" in head


@pytest.mark.parametrize("row", [*POLICY_ROWS, *ABLATIONS], ids=lambda row: row.name)
def test_every_row_is_a_server_that_can_be_started(row, monkeypatch):
    seen = []
    monkeypatch.setattr(cli, "_run", seen.append)
    assert cli.main(["serve", "-f", "services.yaml", *EMULATED.flags, *row.flags]) == 0
    assert seen


def test_every_feature_that_an_ablation_is_wanted_of_can_be_switched():
    names = " ".join(row.name for row in ABLATIONS)
    for feature in (
        *("drafts", "sweeps", "same-iteration joins", "layer-major prefill", "residency"),
        *("int8 KV", "admission", "error budget"),
    ):
        assert feature in names


def test_what_must_be_known_of_a_row_is_told_where_it_is():
    good = cell([seen(ttft_ms=10, tpot_ms=10)] * 100)
    cells = {("heavy", name): [cell([seen()], 100)] for name in ("omniserve", "omniserve + drafts")}
    run = Run(EMULATED, calibrate(good, {2.0: good}), cells, 0)
    contents = rows_and_ratios(run)
    assert list(contents["notes"]) == ["omniserve + drafts"]
    assert "omniserve + drafts: random prompts" in table(run, contents)[0]
