"""The tables of charts/omniserve/README.md, from the comments in values.yaml and from the schema.

    python hack/chart_readme.py           # write
    python hack/chart_readme.py --check   # exit code 1 where the file differs

A value is documented by the comment above it that begins with `# --`. Entries of `agentPools` have
their descriptions in values.schema.json.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).resolve().parents[1] / "charts/omniserve"
BEGIN, END = "<!-- {} begin: make chart-docs -->", "<!-- {} end -->"
_KEY = re.compile(r"(?P<indent> *)(?P<key>[A-Za-z0-9]+):")


@dataclass(frozen=True)
class Entry:
    """One documented value: its dotted path, its comment, its default."""

    path: str
    text: str
    default: object


def entries(values_text: str) -> list[Entry]:
    """Every value with a `# --` comment, in the file's order."""
    values = yaml.safe_load(values_text)
    return [Entry(".".join(path), text, _at(values, path)) for path, text in _comments(values_text)]


def _comments(values_text: str) -> Iterator[tuple[list[str], str]]:
    path: list[str] = []
    comment: list[str] = []
    for line in values_text.splitlines():
        text = line.strip()
        if text.startswith("# --"):
            comment = [text.removeprefix("# --").strip()]
        elif text.startswith("#") and comment:
            comment.append(text.removeprefix("#").strip())
        elif match := _KEY.match(line):
            path = [*path[: len(match["indent"]) // 2], match["key"]]
            if comment:
                yield list(path), " ".join(comment)
            comment = []
        else:
            comment = []


def _at(values: object, path: list[str]) -> object:
    for key in path:
        values = values[key] if isinstance(values, dict) else None
    return values


def values_table(values_text: str) -> str:
    """The table of all values."""
    rows = [(f"`{e.path}`", _default(e.default), e.text) for e in entries(values_text)]
    return _table(("value", "default", "what it does"), rows)


def pool_table(schema: dict[str, Any]) -> str:
    """The table of what an entry of `agentPools` may hold."""
    pool = schema["properties"]["agentPools"]["items"]
    rows = [
        (f"`{name}`", "yes" if name in pool["required"] else "no", field["description"])
        for name, field in pool["properties"].items()
    ]
    return _table(("field", "required", "what it does"), rows)


def _default(value: object) -> str:
    return f"`{json.dumps(value, separators=(', ', ': '))}`"


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(
        "| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in lines
    )


def readme(old: str, chart: Path = CHART) -> str:
    """`old` with its tables replaced; ValueError where a marker is missing."""
    schema = json.loads((chart / "values.schema.json").read_text())
    tables = {
        "values": values_table((chart / "values.yaml").read_text()),
        "pools": pool_table(schema),
    }
    for name, table in tables.items():
        begin, end = BEGIN.format(name), END.format(name)
        before, found, rest = old.partition(begin)
        _, closed, after = rest.partition(end)
        if not found or not closed:
            raise ValueError(f"README.md lacks {begin!r} or {end!r}; put both back")
        old = f"{before}{begin}\n{table}\n{end}{after}"
    return old


def main(arguments: list[str]) -> int:
    """The exit code."""
    path = CHART / "README.md"
    old = path.read_text()
    new = readme(old)
    if arguments == ["--check"]:
        if new != old:
            print(f"{path} differs from values.yaml: run make chart-docs", file=sys.stderr)
        return int(new != old)
    path.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
