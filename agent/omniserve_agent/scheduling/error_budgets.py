"""The error budgets of all LS services, and what rules.

Every service has a budget of its own, by its own objective. All share the iterations, so each
budget is a bound on every plan: what rules is the highest quantile, the widest margin and the
smallest share of the slack that one of them asks for. It is computed by events and read by plans.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from math import inf

from omniserve_agent.scheduling.error_budget import ErrorBudget

KEPT_OBJECTIVES = 256  # of services that fell silent


@dataclass(frozen=True, slots=True)
class Objective:
    """What an LS service promises."""

    attained: float = 0.99  # the share of its requests that shall attain; below 1
    window_s: float = 300.0  # over which that is judged


DEFAULT_OBJECTIVE = Objective()


@dataclass(frozen=True, slots=True)
class Ruling:
    """What plans heed: the fields of `ErrorBudget` by these names."""

    quantile: float
    widening: float
    share: float


def ruling(budgets: Collection[ErrorBudget]) -> Ruling:
    """The most that one of the budgets asks for, of each kind.

    One with too few samples asks for nothing beside those that have enough, unless requests of it
    missed: a service with a request a minute would else hold all others at where they began.
    """
    asking = [one for one in budgets if one.known or one.wary]
    heeded = asking or budgets or [_begun(DEFAULT_OBJECTIVE)]
    return Ruling(
        max([budget.quantile for budget in heeded]),
        max([budget.widening for budget in heeded]),
        min([budget.share for budget in heeded]),
    )


def _begun(objective: Objective, enabled: bool = True) -> ErrorBudget:
    return ErrorBudget(objective.attained, objective.window_s, enabled)


@dataclass(slots=True)
class _Service:
    """One that requests came from, or ended of, within its window."""

    objective: Objective
    budget: ErrorBudget
    heard_s: float = -inf

    @property
    def until_s(self) -> float:
        """From then on its window is empty, unless it is heard of again."""
        return self.heard_s + self.objective.window_s


@dataclass(slots=True)
class ErrorBudgets:
    """See the module. `quantile`, `widening` and `share` are those that rule."""

    enabled: bool = True
    quantile: float = field(init=False)
    widening: float = field(init=False)  # times the margin
    share: float = field(init=False)  # of LS's slack that BE prompts may take
    _services: dict[str, _Service] = field(default_factory=dict)
    _silent: dict[str, Objective] = field(default_factory=dict)
    _until_s: float = inf  # nobody falls silent before

    def __post_init__(self) -> None:
        self._rule()

    @property
    def burn(self) -> float:
        """Of the most burnt one: share missed over share allowed."""
        return max(self.burns().values(), default=0.0)

    def burns(self) -> dict[str, float]:
        """Of each, by service."""
        return {name: service.budget.burn for name, service in self._services.items()}

    def arrived(self, name: str, objective: Objective, now_s: float) -> None:
        """A request came. The newest tells what its service promises; something new begins anew."""
        service = self._service(name, objective)
        if service.objective != objective:
            service.objective, service.budget = objective, _begun(objective, self.enabled)
        service.heard_s = max(service.heard_s, now_s)
        self._rule()

    def judged(self, name: str, attained: bool, now_s: float) -> None:
        """A request ended."""
        service = self._service(name, self._silent.get(name, DEFAULT_OBJECTIVE))
        service.heard_s = max(service.heard_s, now_s)
        budget = service.budget
        budget.judged(attained, now_s)
        if budget.wary and budget.clean and not budget.known:
            # The bad time is over, and too few requests come for the budget to tell by itself.
            service.budget = _begun(service.objective, self.enabled)
        self._rule()

    def settle(self, now_s: float) -> None:
        """Whoever fell silent rules no longer, and will begin anew."""
        if now_s < self._until_s:
            return
        for name, service in [*self._services.items()]:
            if service.until_s <= now_s:
                self._silent[name] = self._services.pop(name).objective
        for name in [*self._silent][:-KEPT_OBJECTIVES]:
            del self._silent[name]
        self._rule()

    def _service(self, name: str, objective: Objective) -> _Service:
        service = self._services.get(name)
        if service is None:
            self._silent.pop(name, None)
            service = self._services[name] = _Service(objective, _begun(objective, self.enabled))
        return service

    def _rule(self) -> None:
        services = self._services.values()
        self._until_s = min([service.until_s for service in services], default=inf)
        found = ruling([service.budget for service in services])
        self.quantile, self.widening, self.share = found.quantile, found.widening, found.share
