"""How long agents have been silent, on the operator's own clock.

Time during which the operator itself could not write does not count: nobody else could either, and
nobody could have been heard. Nor does the time during which another one held the Lease.
"""

from __future__ import annotations

from dataclasses import dataclass

# Longer than between two renewals of the Lease, which are the operator's own sign of life.
OFFLINE_AFTER_S = 10.0


@dataclass(frozen=True)
class _Heard:
    fingerprint: str
    at_s: float
    offline_s: float


class Freshness:
    """Last observed changes, by node."""

    def __init__(self, now_s: float) -> None:
        self._heard: dict[str, _Heard] = {}
        self._contact_s = now_s
        self._offline_s = 0.0

    def contact(self, now_s: float) -> None:
        """The API server took a write."""
        gap = now_s - self._contact_s
        if gap > OFFLINE_AFTER_S:
            self._offline_s += gap
        self._contact_s = now_s

    def observe(self, node: str, fingerprint: str, now_s: float) -> None:
        """What a node's status says; only a change is a sign of life."""
        before = self._heard.get(node)
        if before is None or before.fingerprint != fingerprint:
            self._heard[node] = _Heard(fingerprint, now_s, self._offline_total(now_s))

    def forget(self, node: str) -> None:
        self._heard.pop(node, None)

    def silent_s(self, node: str, now_s: float) -> float | None:
        """Seconds since the last change; None where nothing was ever heard."""
        heard = self._heard.get(node)
        if heard is None:
            return None
        offline = self._offline_total(now_s) - heard.offline_s
        return max(0.0, now_s - heard.at_s - offline)

    def _offline_total(self, now_s: float) -> float:
        gap = now_s - self._contact_s
        return self._offline_s + (gap if gap > OFFLINE_AFTER_S else 0.0)
