"""Running output-length quantiles: how long a BE request is expected to get."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field

PRIOR_TOKENS = 256  # before enough requests of a service have finished
RENEW_EVERY = 32  # requests: predictions made before are made again


@dataclass
class OutputLengths:
    """The last `window` output lengths of each service."""

    window: int = 256
    quantile: float = 0.9
    min_samples: int = 8
    _lengths: dict[str, deque[int]] = field(default_factory=dict)
    _finished: Counter[str] = field(default_factory=Counter)

    def observe(self, service: str, output_tokens: int) -> bool:
        """A request of this service finished. Whether those that wait are to be predicted again:
        when its lengths become known, and from time to time after."""
        self._lengths.setdefault(service, deque(maxlen=self.window)).append(output_tokens)
        self._finished[service] += 1
        since_known = self._finished[service] - self.min_samples
        return since_known >= 0 and since_known % RENEW_EVERY == 0

    def expected(self, service: str) -> int:
        """Output tokens: the quantile, or the prior."""
        seen = self._lengths.get(service)
        if seen is None or len(seen) < self.min_samples:
            return PRIOR_TOKENS
        ordered = sorted(seen)
        return ordered[min(len(ordered) - 1, int(self.quantile * len(ordered)))]
