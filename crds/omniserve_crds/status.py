"""`status` of an LLMService: what the operator says, in bounded lists and integers."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from omniserve_crds.conditions import ConditionStatus
from omniserve_crds.nodefields import Count, Message, NodeModel, Percent, Port, Text, Time

MAX_PLACEMENTS = 1000
MAX_REFUSALS = 32
MAX_CONDITIONS = 16


class Condition(NodeModel):
    """metav1.Condition."""

    type: Annotated[str, Field(min_length=1, max_length=316)]
    status: ConditionStatus
    observed_generation: Count = 0
    last_transition_time: Time
    reason: Annotated[str, Field(min_length=1, max_length=256)]
    message: Annotated[str, Field(max_length=4096)] = ""


class PlacementStatus(NodeModel):
    """One replica: where it is, how far it is, and why it is there."""

    node: Text = Field(description="the node's name")
    device: Text = Field(description="the device on that node, for example cuda:0 or cpu")
    state: Text = Field(
        default="Pending", description="Pending, Loading, Ready, Draining or Failed; the agent's"
    )
    reason: Text = Field(default="", description="why it has that state, one CamelCase word")
    message: Message = Field(default="", description="the agent's words on it")
    progress_percent: Percent | None = Field(default=None, description="of loading the model")
    why: Message = Field(default="", description="why this device was chosen, with numbers")


class Refusal(NodeModel):
    """A device that cannot take a wanted replica."""

    node: Text = Field(description="the node's name")
    device: Text = Field(default="", description="the device; empty where the node is refused")
    reason: Text = Field(description="one of the reasons of Scheduled")
    message: Message = Field(description="why not there, with numbers")


class SloStatus(NodeModel):
    """Measured attainment of an LS service over its window, summed over its replicas; rounded."""

    summary: Text = Field(description="attained % / objective %, the SLO column; - while unknown")
    window: Annotated[str, Field(max_length=16)] = Field(description="spec.slo.window")
    samples: Count = Field(default=0, description="offered requests, two significant digits")
    attained_percent: Text = Field(default="", description="attained / offered, one decimal")
    attained_finished_percent: Text = Field(default="", description="attained / finished")
    refused_percent: Text = Field(default="", description="refused for capacity / offered")
    ttft_ms_p50: Count | None = Field(default=None, alias="ttftMsP50", description="median, worst")
    ttft_ms_p99: Count | None = Field(default=None, alias="ttftMsP99", description="worst node's")
    tpot_ms_p50: Count | None = Field(default=None, alias="tpotMsP50", description="median, worst")
    tpot_ms_p99: Count | None = Field(default=None, alias="tpotMsP99", description="worst node's")
    worst_node: Text = Field(default="", description="the node with the highest p99")


class BestEffortStatus(NodeModel):
    """Progress of a BE service, summed over its replicas; rounded."""

    tokens_per_minute: Count = Field(default=0, description="output tokens, two digits")
    queued: Count = Field(default=0, description="requests that wait, two digits")
    running: Count = Field(default=0, description="requests in the engines, two digits")
    throttled_percent: Percent = Field(default=0, description="of the last minute, in steps of 5")
    throttled_by: list[Text] = Field(
        default_factory=list, max_length=16, description="LS services it yields to"
    )
    predicted_finish: Time | None = Field(
        default=None, description="of all that is queued, to the minute"
    )


class LLMServiceStatus(NodeModel):
    """What is so; only the operator writes it."""

    observed_generation: Count = Field(default=0, description="the generation this speaks of")
    conditions: list[Condition] = Field(default_factory=list, max_length=MAX_CONDITIONS)
    url: Text = Field(default="", description="the OpenAI API inside the cluster")
    port: Port | None = Field(
        default=None, description="the service's port on agents, 20000-29999, unique in the cluster"
    )
    replicas: Count = Field(default=0, description="replicas that have a device")
    ready_replicas: Count = Field(default=0, description="replicas that answer")
    ready_summary: Text = Field(default="", description="ready/wanted, the REPLICAS column")
    node_names: Text = Field(default="", description="nodes of its replicas, the NODES column")
    selector: Text = Field(default="", description="agents that may serve it, for autoscalers")
    placements: list[PlacementStatus] = Field(default_factory=list, max_length=MAX_PLACEMENTS)
    refusals: list[Refusal] = Field(default_factory=list, max_length=MAX_REFUSALS)
    slo: SloStatus | None = None
    best_effort: BestEffortStatus | None = None
