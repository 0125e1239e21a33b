"""Durations as Kubernetes users write them: `90s`, `5m`, `1h`, `1m30s`."""

from __future__ import annotations

import re

from omniserve_crds.rules import Rule

_DURATION = re.compile(r"(?:(?P<h>\d{1,6})h)?(?:(?P<m>\d{1,6})m)?(?:(?P<s>\d{1,6})s)?", re.ASCII)


def parse_duration_s(text: str) -> int:
    """Seconds of `text`; ValueError unless it is hours, minutes and seconds in that order."""
    match = _DURATION.fullmatch(text)
    if match is None or not text:
        raise ValueError(f"is {text!r}; write a duration such as 30s, 5m or 1m30s")
    hours, minutes, seconds = (int(match[unit] or 0) for unit in ("h", "m", "s"))
    return hours * 3600 + minutes * 60 + seconds


def bounded_duration_s(text: str, low: str, high: str) -> int:
    """Seconds of `text`, refused with ValueError outside [low, high]."""
    seconds = parse_duration_s(text)
    if not parse_duration_s(low) <= seconds <= parse_duration_s(high):
        raise ValueError(f"is {text!r}; write a duration from {low} to {high}")
    return seconds


def duration_rules(low: str, high: str) -> tuple[Rule, ...]:
    """`bounded_duration_s` in CEL, for a field of at most 16 characters."""
    shape = r"^([0-9]{1,6}h)?([0-9]{1,6}m)?([0-9]{1,6}s)?$"
    bounds = f"duration(self) >= duration('{low}') && duration(self) <= duration('{high}')"
    return (
        Rule(
            "",
            f"self != '' && self.matches('{shape}')",
            "write a duration such as 30s, 5m or 1m30s",
        ),
        Rule(
            "",
            # A text of another shape is the first rule's matter.
            f"!self.matches('{shape}') || self == '' || ({bounds})",
            f"write a duration from {low} to {high}",
        ),
    )
