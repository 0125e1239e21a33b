"""The chart's README is what its values say."""

import yaml

import chart_readme
from support.chart import CHART


def test_the_tables_are_up_to_date():
    text = (CHART / "README.md").read_text()
    assert chart_readme.readme(text) == text, "run: make chart-docs"


def test_a_changed_default_or_comment_is_noticed():
    before = chart_readme.values_table("# -- How many.\ncount: 1\n")
    assert before.splitlines()[2:] == ["| `count` | `1` | How many. |"]
    assert chart_readme.values_table("# -- How many.\ncount: 2\n") != before
    assert chart_readme.values_table("# -- How few.\ncount: 1\n") != before


def test_every_value_is_documented():
    """A value without a comment would be missing from the table."""
    text = (CHART / "values.yaml").read_text()
    documented = {entry.path for entry in chart_readme.entries(text)}
    missing = [
        path
        for path in _leaves(yaml.safe_load(text))
        if not any(path == d or path.startswith(f"{d}.") for d in documented)
    ]
    assert missing == []


def _leaves(values, before=""):
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{before}{key}.")
        else:
            yield f"{before}{key}"
