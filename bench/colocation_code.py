"""Which code the figures of a co-location cell depend on."""

from __future__ import annotations

from pathlib import Path

import report
from store import digest_of_files

# Of this folder, what shapes a cell. Devices and rows are in its key as settings.
SHAPING = (
    *("awake.py", "colocation.py", "colocation_client.py", "colocation_manifest.py"),
    *("colocation_session.py", "colocation_traces.py", "servers.py", "streams.py"),
)


def code() -> str:
    """Names what a cell's figures depend on beside its settings. A commit would not do: one that
    touches documents only is another, and all trees with edits of their own are one `-dirty`."""
    native = report.ROOT / "native"
    return digest_of_files(
        [
            report.ROOT / "agent/omniserve_agent",
            *(native / "src", native / "include"),
            *(native / "omniserve_native").glob("*.py"),
            *(Path(__file__).with_name(name) for name in SHAPING),
        ]
    )
