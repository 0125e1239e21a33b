"""Object metadata: what a manifest may say, and what an API server adds."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from omniserve_crds.fields import ApiModel, DnsLabel, LabelMap, ServiceName

Annotations = Annotated[dict[str, str], Field(max_length=1024)]


class ObjectMeta(ApiModel):
    """`name` is a DNS label because a Service of the same name is made for the object."""

    name: ServiceName = Field(description="a DNS label such as chat")
    namespace: DnsLabel = "default"
    labels: LabelMap = Field(default_factory=dict)
    annotations: Annotations = Field(default_factory=dict)

    # Set by an API server; accepted in files so that `kubectl get -o yaml` output can be served.
    uid: str = ""
    generation: int = 0
    resource_version: str = ""
    creation_timestamp: Any = None
    deletion_timestamp: Any = None
    deletion_grace_period_seconds: int | None = None
    finalizers: list[str] = Field(default_factory=list)
    owner_references: list[dict[str, Any]] = Field(default_factory=list)
    managed_fields: list[dict[str, Any]] = Field(default_factory=list)
    self_link: str = ""
