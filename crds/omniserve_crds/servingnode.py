"""`ServingNode`: what a node shall run and what it reports.

Cluster-scoped, named like its Node. `spec` is the operator's alone, `status` that node's agent's
alone. No secrets: keys are mirrored into the release namespace and named here. Both sides ignore
fields they do not know, so that operator N works with agents N−1.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import Field, Strict, field_validator

from omniserve_crds.llmservice import Dtype, KvCacheDtype, ServiceClass, Slo
from omniserve_crds.nodefields import Bytes, Count, Message, NodeModel, Percent, Port, Text, Time
from omniserve_crds.status import Condition

MAX_ASSIGNMENTS = 256
MAX_DEVICES = 16

# ---- spec: the operator writes ----------------------------------------------------------------


class EngineAssignment(NodeModel):
    """One engine: a model on a device with its share of host cores and host KV."""

    device: Text  # a device the agent reports, for example cuda:0 or cpu
    key: Text  # hash of the engine key; a change means another engine
    uri: Annotated[str, Field(max_length=2048)]
    revision: Text | None = None  # as resolved
    dtype: Dtype = Dtype.AUTO
    kv_cache_dtype: KvCacheDtype = KvCacheDtype.AUTO
    max_model_len: Count | None = None
    credentials_secret: Text | None = None  # mirrored, in the agent's namespace
    host_cores: Count
    host_kv_bytes: Bytes
    weights_bytes: Bytes | None = None  # where known: checked before anything is loaded


class ServiceAssignment(NodeModel):
    """One replica of one LLMService on one of this node's engines."""

    uid: Text
    generation: Count
    namespace: Text
    name: Text
    served_name: Text
    service_class: ServiceClass = Field(alias="class")
    slo: Slo | None = None
    priority: Annotated[int, Strict(), Field(ge=-100, le=100)] = 0
    min_share_percent: Percent | None = None
    device: Text  # names the engine
    port: Port  # selects service, class and keys on the agent
    api_keys_secret: Text | None = None  # mirrored, in the agent's namespace
    drain: bool = False  # finish what runs, take nothing new

    @field_validator("slo", mode="before")
    @classmethod
    def _known_fields(cls, slo: object) -> object:
        """`Slo` is strict for the owners of services; here a newer operator may write more."""
        if not isinstance(slo, dict):
            return slo
        known = {name for n, f in Slo.model_fields.items() for name in (n, f.alias)}
        return {name: value for name, value in slo.items() if name in known}


class ServingNodeSpec(NodeModel):
    """What the node shall run."""

    node_uid: Text = ""
    engines: list[EngineAssignment] = Field(default_factory=list, max_length=MAX_DEVICES)
    assignments: list[ServiceAssignment] = Field(default_factory=list, max_length=MAX_ASSIGNMENTS)
    drain: bool = False  # the whole node: finish what runs, readiness off


# ---- status: the agent writes ------------------------------------------------------------------


class ServiceRunState(StrEnum):
    """Where a replica is."""

    PENDING = "Pending"
    LOADING = "Loading"
    READY = "Ready"
    DRAINING = "Draining"
    FAILED = "Failed"


class RunReason(StrEnum):
    """Why a replica is where it is: `ServiceReport.reason`. Newer agents may know more."""

    WAITING_FOR_RESOURCES = "WaitingForResources"  # something that still runs holds them
    REFUSED = "Refused"  # the assignment cannot be carried out here; the message has figures
    PREPARING = "Preparing"  # the model is on its way into the node's cache
    STARTING = "Starting"  # the engine process loads it
    PROBING = "Probing"  # the first real completion is awaited
    SERVING = "Serving"
    KEYS_MISSING = "KeysMissing"  # the mirrored Secret is not there or empty
    PORT_UNAVAILABLE = "PortUnavailable"
    LOAD_FAILED = "LoadFailed"
    ENGINE_FAILED = "EngineFailed"  # given up for now; tried again after a wait
    ENGINE_RESTARTING = "EngineRestarting"
    DRAINING = "Draining"
    DRAINED = "Drained"  # nothing runs any more


class LsWindow(NodeModel):
    """LS figures over the service's SLO window."""

    offered: Count = 0
    finished: Count = 0
    attained: Count = 0
    refused: Count = 0
    failed: Count = 0
    ttft_missed: Count = 0
    tpot_missed: Count = 0
    error_budget_burn_percent: Count | None = None  # of the offered: share missed over allowed
    ttft_ms_p50: Count | None = Field(default=None, alias="ttftMsP50")
    ttft_ms_p99: Count | None = Field(default=None, alias="ttftMsP99")
    tpot_ms_p50: Count | None = Field(default=None, alias="tpotMsP50")
    tpot_ms_p99: Count | None = Field(default=None, alias="tpotMsP99")


class BeWindow(NodeModel):
    """BE figures over the last minute."""

    tokens_per_minute: Count = 0
    queued: Count = 0
    running: Count = 0
    throttled_percent: Percent = 0
    throttled_by: list[Text] = Field(default_factory=list, max_length=16)  # namespace/name
    predicted_finish: Time | None = None  # of all that is queued now


class ServiceReport(NodeModel):
    """One service on this node."""

    uid: Text
    observed_generation: Count = 0
    state: ServiceRunState = ServiceRunState.PENDING
    reason: Text = ""  # CamelCase
    message: Message = ""
    progress_percent: Percent | None = None  # while loading
    ls: LsWindow | None = None
    be: BeWindow | None = None


class DeviceReport(NodeModel):
    """A device an engine can run on."""

    id: Text  # cuda:0, cpu
    kind: Text = ""  # the device's product name
    memory_bytes: Bytes = 0
    healthy: bool = True


class ErrorBudgetReport(NodeModel):
    """How an engine's error budgets control what BE gets. Of several services the strictest rules;
    refused requests burn nothing here, since no margin would have helped them."""

    burn_percent: Count = 0  # of the most burnt one: share missed over share allowed
    slack_percent: Percent = 100  # of LS's slack that BE prompts may take
    margin_percent: Count = 100  # planned over predicted time
    margin_quantile_percent: Percent = 0  # of prediction residuals that the margin is taken at
    margin_widening_percent: Count = 100  # what the margin is multiplied by


class EngineReport(NodeModel):
    """An engine that runs, with what placement needs to predict its neighbours' times."""

    device: Text
    key: Text
    host_kv_bytes: Bytes = 0
    host_kv_free_bytes: Bytes = 0
    weights_bytes: Bytes = 0  # as loaded, 0 while unknown
    piggybacked_rows: Count = 0  # joins since start
    ls_rows: Count = 0  # mean LS rows per iteration, lately
    iteration_micros: Count | None = None  # mean, lately
    row_micros: Count | None = None  # predicted cost of one more LS row per iteration
    be_iteration_micros: Count | None = None  # what BE adds to an iteration, lately
    admission_queued: Count = 0  # LS requests that admission holds back now
    error_budget: ErrorBudgetReport | None = None  # where the policy predicts


class ServingNodeStatus(NodeModel):
    """What the node has and does. Figures are refreshed every 15 s, states at once."""

    heartbeat_time: Time | None = None
    observed_generation: Count = 0
    agent_version: Text = ""
    agent_template: Text = ""  # the DaemonSet template this agent runs
    address: Text = ""  # where assigned ports are served
    admin_port: Port | None = None
    devices: list[DeviceReport] = Field(default_factory=list, max_length=MAX_DEVICES)
    host_cores: Count = 0  # for all engines together
    host_kv_bytes: Bytes = 0  # for all engines together
    model_volumes: list[Text] = Field(default_factory=list, max_length=64)  # pvc:// names
    engines: list[EngineReport] = Field(default_factory=list, max_length=MAX_DEVICES)
    services: list[ServiceReport] = Field(default_factory=list, max_length=MAX_ASSIGNMENTS)
    # Columns of `kubectl get`, which show one value of a list only.
    engine_summary: Text = ""  # ready/devices
    ready_summary: Text = ""  # ready/assigned services
    conditions: list[Condition] = Field(default_factory=list, max_length=16)


class ServingNode(NodeModel):
    """One node."""

    api_version: Literal["omniserve.io/v1alpha1"] = "omniserve.io/v1alpha1"
    kind: Literal["ServingNode"] = "ServingNode"
    metadata: dict[str, Any] = Field(default_factory=dict)
    spec: ServingNodeSpec = ServingNodeSpec()
    status: ServingNodeStatus = ServingNodeStatus()
