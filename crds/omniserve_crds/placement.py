"""Where a service may run: node selector, tolerations, colocation."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Self

from pydantic import Field, Strict, model_validator

from omniserve_crds.fields import ApiModel, LabelKey, LabelMap, LabelValue
from omniserve_crds.rules import Rule, enforce


class TolerationOperator(StrEnum):
    EQUAL = "Equal"
    EXISTS = "Exists"


class TaintEffect(StrEnum):
    NO_SCHEDULE = "NoSchedule"
    PREFER_NO_SCHEDULE = "PreferNoSchedule"
    NO_EXECUTE = "NoExecute"


class Colocation(StrEnum):
    """`Exclusive`: no other service on its device and host share."""

    ALLOWED = "Allowed"
    EXCLUSIVE = "Exclusive"


class Toleration(ApiModel):
    """A core/v1 Toleration."""

    key: LabelKey | None = Field(default=None, description="the taint's key; all with Exists")
    operator: TolerationOperator = Field(
        default=TolerationOperator.EQUAL, description="Equal compares values, Exists does not"
    )
    value: LabelValue | None = Field(default=None, description="the taint's value, for Equal")
    effect: TaintEffect | None = Field(default=None, description="the taint's effect; all if empty")
    toleration_seconds: Annotated[int, Strict(), Field(ge=0, le=2**31 - 1)] | None = Field(
        default=None, description="NoExecute only: how long a replica may stay"
    )

    @model_validator(mode="after")
    def _rules_hold(self) -> Self:
        return enforce(self, TOLERATION_RULES)


TOLERATION_RULES = (
    (
        Rule(
            "value",
            "!has(self.operator) || self.operator != 'Exists' || !has(self.value)",
            "forbidden for operator Exists; remove it or use operator Equal",
        ),
        lambda t: t.operator is not TolerationOperator.EXISTS or t.value is None,
    ),
    (
        Rule(
            "key",
            "has(self.key) || (has(self.operator) && self.operator == 'Exists')",
            "missing for operator Equal; name the taint's key or use operator Exists",
        ),
        lambda t: t.operator is TolerationOperator.EXISTS or t.key is not None,
    ),
    (
        Rule(
            "tolerationSeconds",
            "!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')",
            "only for effect NoExecute; remove it or set effect to NoExecute",
        ),
        lambda t: t.toleration_seconds is None or t.effect is TaintEffect.NO_EXECUTE,
    ),
)


class Placement(ApiModel):
    """Which nodes, and with whom."""

    node_selector: LabelMap = Field(
        default_factory=dict, description="labels a node must have, with these values"
    )
    tolerations: list[Toleration] = Field(
        default_factory=list, max_length=16, description="taints that are no obstacle"
    )
    colocation: Colocation = Colocation.ALLOWED
