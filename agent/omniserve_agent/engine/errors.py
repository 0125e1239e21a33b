"""Why an engine cannot start."""

from __future__ import annotations


class EngineSetupError(Exception):
    """The engine can not start with this configuration; one line for the user."""
