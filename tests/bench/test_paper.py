"""What paper.json says of its parts: where each comes from."""

import pytest

from paper import check, head_of, merged
from support.paper_rows import row

ROWS = [row("omniserve", 1.0, 1.0, part) for part in ("load", "slo")]


def test_the_head_says_what_all_parts_have_in_common():
    first = {"commit": "abc", "command": "bench/paper.py"}
    second = {"commit": "def", "command": "bench/paper.py --only slo"}
    assert head_of({"load": first, "slo": second}) == {
        "commit": "parts of different commits",
        "command": "parts of different commands",
    }
    assert head_of({"load": first, "slo": first}) == first


def test_a_part_that_is_run_again_takes_the_place_of_all_its_seeds():
    old = [*ROWS, row("omniserve", 1.0, 1.0, "slo", seed=1)]
    new = [row("omniserve", 1.0, 2.0, "slo")]
    assert merged(old, new) == [ROWS[0], *new]


def test_a_file_without_seeds_is_refused():
    check({"parts": {}, "rows": ROWS})
    old = [{key: value for key, value in ROWS[0].items() if key != "seed"}]
    for contents in ({"parts": {}, "rows": old}, {"rows": ROWS}):
        with pytest.raises(SystemExit, match="run all parts once"):
            check(contents)
