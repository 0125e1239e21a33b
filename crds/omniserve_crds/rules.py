"""Rules a schema cannot say: their CEL text for the CRD beside the check pydantic runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from pydantic_core import PydanticCustomError

Subject = TypeVar("Subject")

RULE_ERROR = "omniserve_rule"


@dataclass(frozen=True)
class Rule:
    """`message` is shown for `field` (a dotted path below the subject) unless the rule holds.

    `field` is empty where the subject is a single value.
    """

    field: str
    cel: str
    message: str


def enforce(subject: Subject, checks: Iterable[tuple[Rule, Callable[[Subject], bool]]]) -> Subject:
    """`subject`, or a pydantic error for the first rule that does not hold."""
    for rule, holds in checks:
        if not holds(subject):
            raise PydanticCustomError(
                RULE_ERROR, "{field}: {text}", {"field": rule.field, "text": rule.message}
            )
    return subject
