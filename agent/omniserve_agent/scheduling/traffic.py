"""What comes to an LS service, and what LS as a whole may come to hold.

An arrival may come any moment, so idle iterations leave time for its prompt. And whoever lengthens
iterations lengthens the stay of every LS request: by Little's law λ · O · T requests of O tokens
decode at once when an iteration takes T, and all of them hold device KV.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

KEPT = 128  # requests
# Shares of the device that LS fills, from where on BE gets less than its slack, and none of it.
KV_BAND = (0.45, 0.75)
ROW_BAND = (0.75, 0.95)


@dataclass(slots=True)
class Traffic:
    """Of one service."""

    ttft_s: float
    p95_prompt: int = 0  # tokens
    _prompts: deque[int] = field(default_factory=lambda: deque(maxlen=KEPT))

    def arrived(self, tokens: int, ttft_s: float) -> None:
        """A request with a prompt of so many tokens."""
        self.ttft_s = ttft_s
        self._prompts.append(tokens)
        ordered = sorted(self._prompts)
        self.p95_prompt = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]


def slack_share(ls_tokens: int, device_tokens: int, ls_rows: int, device_rows: int) -> float:
    """How much of its slack BE may take (0 to 1) while LS holds so much of KV and of the batch.

    A controller, not a reserve: BE fills the memory meanwhile and leaves when LS grows. Where LS
    would outgrow the device with iterations at their longest, they settle at the length for which
    λ · O · T fits.
    """
    shares = (
        _left(KV_BAND, ls_tokens / max(1, device_tokens)),
        _left(ROW_BAND, ls_rows / max(1, device_rows)),
    )
    return min(1.0, max(0.0, min(shares)))


def _left(band: tuple[float, float], filled: float) -> float:
    easy, tight = band
    return (tight - filled) / (tight - easy)
