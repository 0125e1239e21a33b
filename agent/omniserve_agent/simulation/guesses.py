"""Guessed tokens behind offloaded rows: how many, chosen as the engine does, and what they cost."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from omniserve_agent.scheduling.ceiling import BeFlow, binding
from omniserve_agent.scheduling.draft_length import ROW_COST, best_length
from omniserve_agent.simulation.counted import Counted

HOST_COST = ROW_COST["host_bandwidth"]  # of a hop on the host, each guess: the KV is read once
CHOSEN_EVERY_S = 1.0  # as the engine reports


@dataclass
class Guesses:
    """At most `longest` a hop, each right with `acceptance` where those before it were."""

    longest: int = 0
    acceptance: float = 0.5
    length: int = field(init=False)
    _at_s: float = 0.0
    _host_busy_s: float = 0.0
    _before: Counted = field(default_factory=Counted)

    def __post_init__(self) -> None:
        self._choose("none")

    def _choose(self, ceiling: str) -> None:
        self.length = best_length(self.acceptance, ROW_COST[ceiling], self.longest)

    def due(self, now_s: float) -> bool:
        """Whether it is time to choose again."""
        return self.longest > 0 and now_s >= self._at_s + CHOSEN_EVERY_S

    def settle(
        self,
        now_s: float,
        counts: Counted,
        host_busy_s: float,
        layers: int,
        rows_in_flight: int,
        prefilling: bool,
    ) -> None:
        """By the ceiling that bound BE since the last time (`engine/reporting.py`);
        `host_busy_s`: of a host, since the start."""
        before, self._before = self._before, replace(counts)
        busy_s, self._host_busy_s = host_busy_s - self._host_busy_s, host_busy_s
        seconds, self._at_s = now_s - self._at_s, now_s
        hops = max(1, counts.hops - before.hops)
        iterations = max(1, counts.iterations - before.iterations)
        host_tokens = counts.be_host_tokens - before.be_host_tokens
        flow = BeFlow(
            rows_in_flight=rows_in_flight,
            tokens_per_hop=max(1.0, host_tokens / hops),
            rows_per_hop=1.0 + (counts.guessed - before.guessed) / hops,
            layers=layers,
            iteration_s=(counts.busy_s - before.busy_s) / iterations,
            waited_share=(counts.waited - before.waited) / iterations,
            lanes=(counts.lanes - before.lanes) / iterations,
            output_tokens_per_s=(counts.be_tokens - before.be_tokens) / seconds,
            host_tokens_per_s=host_tokens / seconds,
            host_busy_share=min(1.0, busy_s / seconds),
            prefill_tokens_per_s=(counts.be_prefill_tokens - before.be_prefill_tokens) / seconds,
            output_per_prompt_token=counts.be_tokens / max(1, counts.be_prefill_tokens),
            prefilling=prefilling,
        )
        self._choose(binding(flow))

    def right(self, guessed: int, chance: float) -> int:
        """How many of so many guesses in a row are right, for a number between 0 and 1."""
        right = 0
        while right < guessed and chance < self.acceptance ** (right + 1):
            right += 1
        return right


def read_tokens(tokens: int, guessed: int) -> float:
    """KV tokens that a hop is worth on the host."""
    return tokens * (1.0 + HOST_COST * guessed)
