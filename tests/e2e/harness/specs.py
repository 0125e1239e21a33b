"""Specs of LLMServices as the tests write them."""

from __future__ import annotations

from typing import Any

from e2e.harness.api import Object


def ls(uri: str = "file:///models/a", **fields: Any) -> Object:
    """A latency-sensitive service; `fields` add to or replace the spec's."""
    slo = {"ttftMs": 1500, "tpotMs": 150, "window": "10s", "minSamples": 5}
    return {"class": "LS", "model": {"uri": uri}, "slo": slo} | fields


def be(uri: str = "file:///models/a", **fields: Any) -> Object:
    """A best-effort service."""
    return {"class": "BE", "model": {"uri": uri}} | fields
