"""What comes to LS services, and what LS as a whole may come to hold.

An arrival may come any moment, so idle iterations leave time for its prompt, and BE leaves memory
for it: as long as its service is heard of, and where it can attain at all. And whoever lengthens
iterations lengthens the stay of every LS request: by Little's law λ · O · T requests of O tokens
decode at once when an iteration takes T, and all of them hold device KV.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import inf

KEPT = 128  # requests
SILENT_S = 300.0  # without a request: nothing is kept ready for the service any more
# Shares of the device that LS fills, from where on BE gets less than its slack, and none.
# With 2 % left, LS attained 1 to 2.5 points less at 8 % of the KV (simulated).
KV_BAND = (0.45, 0.75)
ROW_BAND = (0.75, 0.95)


@dataclass(slots=True)
class Traffic:
    """Of one service, or of all together."""

    ttft_s: float = inf
    p95_prompt: int = 0  # tokens to compute
    p95_kv: int = 0  # tokens added to the KV that others hold
    heard_s: float = -inf
    _prompts: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=KEPT))

    @property
    def prompts(self) -> Sequence[tuple[int, int]]:
        """Of the last ones, what they had to compute, and the KV that they added."""
        return self._prompts

    def arrived(
        self, tokens: int, ttft_s: float, now_s: float = 0.0, kv_tokens: int | None = None
    ) -> None:
        """A request with so many tokens to compute; it adds as much KV, where nothing else is
        said."""
        self.ttft_s = ttft_s
        self.heard_s = max(self.heard_s, now_s)
        self._prompts.append((tokens, tokens if kv_tokens is None else kv_tokens))
        self.p95_prompt = _p95([prompt[0] for prompt in self._prompts])
        self.p95_kv = _p95([prompt[1] for prompt in self._prompts])


def _p95(values: list[int]) -> int:
    values.sort()
    return values[min(len(values) - 1, int(0.95 * len(values)))]


@dataclass(slots=True)
class Arrivals:
    """Of all services that were heard of in the last SILENT_S, by a request that can attain."""

    together: Traffic = field(default_factory=Traffic)
    _services: dict[str, Traffic] = field(default_factory=dict)
    _until_s: float = inf  # nobody falls silent before

    def __bool__(self) -> bool:
        return bool(self._services)

    def arrived(
        self, service: str, tokens: int, ttft_s: float, now_s: float, kv_tokens: int | None = None
    ) -> None:
        """A request came; see `Traffic`."""
        seen = self._services.setdefault(service, Traffic())
        seen.arrived(tokens, ttft_s, now_s, kv_tokens)
        self.together.arrived(tokens, ttft_s, now_s, kv_tokens)
        self._until_s = self._next_silent_s()

    def settle(self, now_s: float) -> None:
        """Forget who fell silent."""
        if now_s < self._until_s:
            return
        self._services = {
            name: seen for name, seen in self._services.items() if seen.heard_s + SILENT_S > now_s
        }
        self.together = _together(self._services.values())
        self._until_s = self._next_silent_s()

    def slack_s(self, prompt_s: Callable[[int], float]) -> float:
        """The least that is left of the TTFT of a prompt at its service's p95 length, if it came
        now; inf where none may."""
        seen = self._services.values()
        return min([one.ttft_s - prompt_s(one.p95_prompt) for one in seen], default=inf)

    def _next_silent_s(self) -> float:
        return min([s.heard_s for s in self._services.values()], default=inf) + SILENT_S


def _together(services: Iterable[Traffic]) -> Traffic:
    """Of those that are still heard of, so that nothing is kept ready for others."""
    found = Traffic()
    for seen in services:
        for tokens, kv_tokens in seen.prompts:
            found.arrived(tokens, seen.ttft_s, seen.heard_s, kv_tokens)
    return found


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
