"""How many guessed tokens a hop should carry, from the acceptance seen and what a row costs."""

from __future__ import annotations

from dataclasses import dataclass

PRIOR_ACCEPTANCE = 0.5
SMOOTHING = 0.2  # weight of the newest hop

# What a further row of a hop costs beside a hop of one row, by the ceiling that binds: next to
# nothing while rows in flight bind (or the host does: the KV is read once for all of them).
ROW_COST = {
    "none": 0.1,
    "device": 0.1,
    "iterations": 0.05,
    "host_bandwidth": 0.1,
    "prefill": 0.3,
    "dense_rows": 1.0,
}


def expected_tokens(acceptance: float, length: int) -> float:
    """Tokens a hop with `length` guesses yields when each is right with this probability.

    The truncated geometric sum 1 + a + … + a^length (Leviathan et al., 2023, equation 1).
    """
    if acceptance >= 1.0:
        return float(length + 1)
    return (1.0 - acceptance ** (length + 1)) / (1.0 - acceptance)


def best_length(acceptance: float, row_cost: float, longest: int) -> int:
    """The length that yields most tokens per cost; 0 guesses nothing.

    `row_cost` is what a further row costs relative to a hop of one row: near 0 where rows in flight
    bind (a hop takes its iterations anyway), 1 where the dense rows do.
    """

    def rate(length: int) -> float:
        return expected_tokens(acceptance, length) / (1.0 + row_cost * length)

    return max(range(longest + 1), key=lambda length: (rate(length), -length))


@dataclass(slots=True)
class Acceptance:
    """Share of guesses that were right, smoothed over hops."""

    share: float = PRIOR_ACCEPTANCE

    def observe(self, proposed: int, accepted: int) -> None:
        """A hop's guesses. Those behind the first wrong one say nothing."""
        judged = min(accepted + 1, proposed)
        if judged > 0:
            self.share += SMOOTHING * (accepted / judged - self.share)
