"""Why the agent cannot serve what it was asked to."""

from __future__ import annotations


class NodeError(Exception):
    """What was asked for cannot be done here; one line for the user, exit code 2."""


class EngineFailedError(Exception):
    """Every engine has stopped for good; one line for the user, exit code 1."""
