"""Field types shared by the models: strict integers and bounded, patterned strings."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from pydantic.alias_generators import to_camel

_DNS_LABEL = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
_SERVICE_NAME = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
_DNS_SUBDOMAIN = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
_REVISION = r"^[A-Za-z0-9][A-Za-z0-9._/-]*$"
_SERVED_NAME = r"^[A-Za-z0-9][A-Za-z0-9._:/-]*$"
_LABEL_KEY = (
    r"^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$"
)
_LABEL_VALUE = r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$"

# What to write instead, for error messages: a pattern alone tells a user little.
PATTERN_HINTS = {
    _DNS_LABEL: "write lowercase letters, digits and '-', starting and ending alphanumeric",
    _SERVICE_NAME: "write lowercase letters, digits and '-', starting with a letter and ending "
    "alphanumeric",
    _DNS_SUBDOMAIN: "write lowercase letters, digits, '-' and '.', each part starting and ending "
    "alphanumeric",
    _REVISION: "write a branch, tag or commit",
    _SERVED_NAME: "write letters, digits, '.', '_', ':', '/' and '-', starting alphanumeric",
    _LABEL_KEY: "write a Kubernetes label key such as example.com/pool",
    _LABEL_VALUE: "write a Kubernetes label value such as gpu-a",
}

DnsLabel = Annotated[str, StringConstraints(pattern=_DNS_LABEL, min_length=1, max_length=63)]
# A Service of the same name is made for the object, and those start with a letter.
ServiceName = Annotated[str, StringConstraints(pattern=_SERVICE_NAME, min_length=1, max_length=63)]
DnsSubdomain = Annotated[
    str, StringConstraints(pattern=_DNS_SUBDOMAIN, min_length=1, max_length=253)
]
Revision = Annotated[str, StringConstraints(pattern=_REVISION, max_length=128)]
ServedName = Annotated[str, StringConstraints(pattern=_SERVED_NAME, max_length=128)]
LabelKey = Annotated[str, StringConstraints(pattern=_LABEL_KEY, max_length=317)]
LabelValue = Annotated[str, StringConstraints(pattern=_LABEL_VALUE, max_length=63)]
LabelMap = Annotated[dict[LabelKey, LabelValue], Field(max_length=32)]


class ApiModel(BaseModel):
    """camelCase outside, unknown fields refused, immutable once read."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        extra="forbid",
        frozen=True,
    )
