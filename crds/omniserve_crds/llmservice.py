"""`LLMService`: a model, a class and, for LS, an objective."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, Strict, model_validator

from omniserve_crds.durations import bounded_duration_s
from omniserve_crds.fields import ApiModel, DnsSubdomain, Revision, ServedName
from omniserve_crds.metadata import ObjectMeta
from omniserve_crds.placement import Placement
from omniserve_crds.rules import Rule, enforce
from omniserve_crds.uris import FORMS, HubUri, ModelUri, parse_model_uri


class ServiceClass(StrEnum):
    """Latency-sensitive or best-effort."""

    LS = "LS"
    BE = "BE"


class Dtype(StrEnum):
    """What the dense modules compute in; `auto`: the best the device has."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class KvCacheDtype(StrEnum):
    """`int8` concerns the host KV of BE requests only, whatever the class of the service."""

    AUTO = "auto"
    INT8 = "int8"


class ServiceState(StrEnum):
    RUNNING = "Running"
    PAUSED = "Paused"


def _checked_uri(text: str) -> str:
    parse_model_uri(text)
    return text


def _checked_window(text: str) -> str:
    bounded_duration_s(text, "10s", "1h")
    return text


class SecretRef(ApiModel):
    """A Secret in the object's namespace."""

    name: DnsSubdomain = Field(description="the name of a Secret in the object's namespace")


class Model(ApiModel):
    """Which weights, and how they are run."""

    uri: Annotated[str, Field(max_length=2048), AfterValidator(_checked_uri)] = Field(
        description=FORMS
    )
    revision: Revision | None = Field(default=None, description="branch, tag or commit; hf:// only")
    served_name: ServedName | None = Field(
        default=None, description="the OpenAI `model` value; the object's name unless given"
    )
    dtype: Dtype = Dtype.AUTO
    kv_cache_dtype: KvCacheDtype = KvCacheDtype.AUTO
    max_model_len: Annotated[int, Strict(), Field(ge=16, le=1_048_576)] | None = Field(
        default=None, description="prompt and output tokens of one request; the model's own limit"
    )
    credentials_secret_ref: SecretRef | None = Field(
        default=None, description="the Secret with the hub's token; hf:// only"
    )

    @property
    def source(self) -> ModelUri:
        """The parsed URI."""
        return parse_model_uri(self.uri)

    @model_validator(mode="after")
    def _rules_hold(self) -> Self:
        return enforce(self, MODEL_RULES)


MODEL_RULES = (
    (
        Rule(
            "revision",
            "!has(self.revision) || self.uri.startsWith('hf://')",
            "only for hf:// URIs; remove it",
        ),
        lambda m: m.revision is None or isinstance(m.source, HubUri),
    ),
    (
        Rule(
            "credentialsSecretRef",
            "!has(self.credentialsSecretRef) || self.uri.startsWith('hf://')",
            "only for hf:// URIs; remove it",
        ),
        lambda m: m.credentials_secret_ref is None or isinstance(m.source, HubUri),
    ),
)


class Slo(ApiModel):
    """An LS service's objective: `objectivePercent` of offered requests meet both times."""

    ttft_ms: Annotated[int, Strict(), Field(ge=1, le=3_600_000)] = Field(
        description="time to first token in milliseconds, an integer"
    )
    tpot_ms: Annotated[int, Strict(), Field(ge=1, le=60_000)] = Field(
        description="mean time per output token in milliseconds, an integer"
    )
    # 100 would leave no error budget to control by.
    objective_percent: Annotated[int, Strict(), Field(ge=1, le=99)] = Field(
        default=99, description="share of offered requests that meet both times"
    )
    window: Annotated[str, Field(max_length=16), AfterValidator(_checked_window)] = Field(
        default="5m",
        description="attainment is judged, and the error budget burns, over this time, 10s to 1h",
    )
    min_samples: Annotated[int, Strict(), Field(ge=1, le=100_000)] = Field(
        default=20, description="below it, SLOAttained is Unknown"
    )

    @property
    def window_s(self) -> int:
        """The window in seconds."""
        return bounded_duration_s(self.window, "10s", "1h")


class Resources(ApiModel):
    """What one replica gets."""

    gpus: Annotated[int, Strict(), Field(ge=1)] = Field(
        default=1, description="devices per replica; only 1 for now"
    )
    min_share_percent: Annotated[int, Strict(), Field(ge=1, le=100)] | None = Field(
        default=None, description="BE only: a floor of progress beside LS"
    )

    @model_validator(mode="after")
    def _rules_hold(self) -> Self:
        return enforce(self, RESOURCES_RULES)


RESOURCES_RULES = (
    (
        Rule(
            "gpus",
            "!has(self.gpus) || self.gpus == 1",
            "must be 1: tensor parallelism is not supported yet",
        ),
        lambda r: r.gpus == 1,
    ),
)


class Auth(ApiModel):
    """Bearer keys; without `auth` the service is open."""

    api_keys_secret_ref: SecretRef = Field(description="the Secret that holds the bearer keys")


class Spec(ApiModel):
    """What the owner wants."""

    service_class: ServiceClass = Field(alias="class", description="LS or BE")
    model: Model = Field(description="the model, at least its uri")
    slo: Slo | None = Field(default=None, description="LS: required; BE: forbidden")
    priority: Annotated[int, Strict(), Field(ge=-100, le=100)] = Field(
        default=0, description="orders services inside a class; a higher one goes first"
    )
    replicas: Annotated[int, Strict(), Field(ge=0, le=1000)] = Field(
        default=1, description="engines that serve it, each on a node of its own"
    )
    resources: Resources = Resources()
    placement: Placement = Placement()
    auth: Auth | None = None
    state: ServiceState = Field(
        default=ServiceState.RUNNING, description="Paused takes all replicas away"
    )

    @model_validator(mode="after")
    def _rules_hold(self) -> Self:
        return enforce(self, SPEC_RULES)


SPEC_RULES = (
    (
        Rule(
            "slo",
            "self.class != 'LS' || has(self.slo)",
            "missing for class LS; write slo.ttftMs and slo.tpotMs",
        ),
        lambda s: s.service_class is not ServiceClass.LS or s.slo is not None,
    ),
    (
        Rule(
            "slo",
            "self.class != 'BE' || !has(self.slo)",
            "forbidden for class BE; remove it",
        ),
        lambda s: s.service_class is not ServiceClass.BE or s.slo is None,
    ),
    (
        Rule(
            "resources.minSharePercent",
            "self.class == 'BE' || !has(self.resources) || !has(self.resources.minSharePercent)",
            "forbidden for class LS; remove it: LS is kept by its slo",
        ),
        lambda s: s.service_class is ServiceClass.BE or s.resources.min_share_percent is None,
    ),
)


class LLMService(ApiModel):
    """One service; `status` is the operator's and never an input."""

    api_version: Literal["omniserve.io/v1alpha1"] = Field(description="omniserve.io/v1alpha1")
    kind: Literal["LLMService"] = Field(description="LLMService")
    metadata: ObjectMeta = Field(description="the object's name and namespace")
    spec: Spec = Field(description="the wanted state: class and model at least")
    status: dict[str, Any] | None = None

    @property
    def key(self) -> str:
        """`namespace/name`."""
        return f"{self.metadata.namespace}/{self.metadata.name}"

    @property
    def served_name(self) -> str:
        """The OpenAI `model` value."""
        return self.spec.model.served_name or self.metadata.name
