"""A CPU-only engine that runs whole BE requests on a host: where `static_headroom` overflows to."""

from __future__ import annotations

from dataclasses import dataclass, field

from omniserve_agent.simulation.hardware import HostPool, ModelShape
from omniserve_agent.simulation.workload import Arrival

PLACES = 8  # requests at once; more would only share the same cores


@dataclass(slots=True)
class _Resident:
    arrival: Arrival
    prefill_left: float  # tokens
    output: float = 0.0


@dataclass
class CpuEngine:
    """Prompts first, one after the other; then a batch of decodes.

    A token's dense work takes max(weight bytes / read rate, 2 · parameters · rows / FLOP rate).
    """

    pool: HostPool
    shape: ModelShape
    tokens: float = 0.0
    finished: int = 0
    _residents: list[_Resident] = field(default_factory=list)

    @property
    def places(self) -> int:
        """How many more requests it takes."""
        return PLACES - len(self._residents)

    def take(self, arrival: Arrival) -> None:
        """A request comes over."""
        self._residents.append(_Resident(arrival, float(arrival.prompt_tokens)))

    def advance(self, seconds: float) -> None:
        """Time passes."""
        parameters = self.shape.weight_bytes / 2
        for one in self._residents:
            if one.prefill_left > 0 and seconds > 0:
                rate = self.pool.flops / (2 * parameters)
                done = min(one.prefill_left, rate * seconds)
                one.prefill_left -= done
                seconds -= done / rate
        decoding = [one for one in self._residents if one.prefill_left <= 0]
        if seconds <= 0 or not decoding:
            return
        kv_bytes = sum((o.arrival.prompt_tokens + o.output) for o in decoding) * self.shape.kv_bytes
        step_s = kv_bytes / self.pool.read_bytes_per_s + max(
            self.shape.weight_bytes / self.pool.read_bytes_per_s,
            2 * parameters * len(decoding) / self.pool.flops,
        )
        for one in decoding:
            made = min(seconds / step_s, one.arrival.output_tokens - one.output)
            one.output += made
            self.tokens += made
        before = len(self._residents)
        self._residents = [o for o in self._residents if o.output < o.arrival.output_tokens]
        self.finished += before - len(self._residents)
