"""Running output-length quantiles: how long a BE request is expected to get."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

PRIOR_TOKENS = 256  # before enough requests of a service have finished


@dataclass
class OutputLengths:
    """The last `window` output lengths of each service."""

    window: int = 256
    quantile: float = 0.9
    min_samples: int = 8
    _lengths: dict[str, deque[int]] = field(default_factory=dict)

    def observe(self, service: str, output_tokens: int) -> None:
        """A request of this service finished."""
        self._lengths.setdefault(service, deque(maxlen=self.window)).append(output_tokens)

    def predict(self, service: str, max_tokens: int) -> int:
        """Expected output tokens: the quantile, at most `max_tokens`."""
        seen = self._lengths.get(service)
        if seen is None or len(seen) < self.min_samples:
            return min(PRIOR_TOKENS, max_tokens)
        ordered = sorted(seen)
        return min(ordered[min(len(ordered) - 1, int(self.quantile * len(ordered)))], max_tokens)
