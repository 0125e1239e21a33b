"""How many offloaded BE rows may rejoin the batch at each layer of an iteration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from omniserve_agent.scheduling.budget import Choice, best, largest_fitting
from omniserve_agent.scheduling.costs import Costs, Load
from omniserve_agent.scheduling.in_flight import InFlight, steps
from omniserve_agent.scheduling.plan import Caps


@dataclass(frozen=True, slots=True)
class Joins:
    """An iteration of `load` that rows in flight may join."""

    costs: Costs
    flights: InFlight
    caps: Caps
    load: Load
    others: int  # layer-steps of BE rows on the device
    step_bytes: float  # of host KV, that a row reads at a layer before it joins there
    alone_s: float  # predicted without joins

    def lanes(self, least: int, budget_s: float) -> int:
        """As many as fit, or up to a step edge of the dense modules, whichever brings most progress
        per second within the budget; `least` whatever they cost."""
        within = [self._choice(least)]
        for lanes in self._choices(least, budget_s):
            within += [one] if (one := self._choice(lanes)).seconds <= budget_s else []
            if lanes >= self.flights.most_ready:
                break  # further lanes would stay empty
        if len(within) == 1:  # no step's edge can be reached: as many as fit
            within.append(self._choice(self._most_fitting(least, budget_s)))
        return best(within).amount

    def _choice(self, lanes: int) -> Choice:
        runs = self.flights.runs(lanes)
        joins_s = self.costs.joins_s(self.load.rows, runs, self.step_bytes)
        seconds = (self.alone_s + joins_s) * self.costs.factor(self.load.kind)
        return Choice(lanes, float(steps(runs) + self.others), seconds)

    def _choices(self, least: int, budget_s: float) -> Sequence[int]:
        """Ascending. Where dense modules have steps these decide; else it may be any number."""
        most, rows = self.caps.join_rows, self.load.rows
        edges = [edge - rows for edge in self.costs.edges if least < edge - rows <= most]
        return sorted({*edges, most}) if edges else [self._most_fitting(least, budget_s)]

    def _most_fitting(self, least: int, budget_s: float) -> int:
        most = min(self.caps.join_rows, max(least, self.flights.most_ready))
        return largest_fitting(least, most, lambda n: self._choice(n).seconds <= budget_s)
