"""Conditions of an LLMService: their types, who says what, and every reason, in one place.

Only the operator writes conditions. At first sight of an object each is Unknown with reason
`Pending`. Documentation pages are generated from the tables below.
"""

from __future__ import annotations

from enum import StrEnum


class ConditionStatus(StrEnum):
    """metav1.Condition's three states."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class ConditionType(StrEnum):
    """What can be said about an LLMService."""

    READY = "Ready"
    ACCEPTED = "Accepted"
    SCHEDULED = "Scheduled"
    MODEL_LOADED = "ModelLoaded"
    SERVING = "Serving"
    PROGRESSING = "Progressing"
    SLO_ATTAINED = "SLOAttained"
    THROTTLED = "Throttled"
    NODES_REPORTING = "NodesReporting"


class Reason(StrEnum):
    """Why a condition has its status; machine-readable, stable once released."""

    PENDING = "Pending"

    VALID = "Valid"
    INVALID = "Invalid"
    CLASS_NOT_ALLOWED = "ClassNotAllowed"
    SECRET_MISSING = "SecretMissing"
    NAME_CONFLICT = "NameConflict"

    PLACED = "Placed"
    INSUFFICIENT_CAPACITY = "InsufficientCapacity"
    NO_MATCHING_NODES = "NoMatchingNodes"
    WOULD_BREAK_NEIGHBOUR_SLO = "WouldBreakNeighbourSLO"
    QUOTA_EXCEEDED = "QuotaExceeded"

    LOADED = "Loaded"
    LOADING = "Loading"
    LOAD_FAILED = "LoadFailed"
    ENGINE_FAILED = "EngineFailed"
    REFUSED = "Refused"
    PORT_UNAVAILABLE = "PortUnavailable"

    REPLICAS_READY = "ReplicasReady"
    REPLICAS_UNAVAILABLE = "ReplicasUnavailable"
    PAUSED = "Paused"

    ROLLING_OUT = "RollingOut"
    RECREATING = "Recreating"
    DRAINING = "Draining"
    COMPLETE = "Complete"

    ATTAINED = "Attained"
    TTFT_MISSED = "TTFTMissed"
    TPOT_MISSED = "TPOTMissed"
    TTFT_AND_TPOT_MISSED = "TTFTAndTPOTMissed"
    REFUSED_FOR_CAPACITY = "RefusedForCapacity"
    NO_TRAFFIC = "NoTraffic"
    INSUFFICIENT_SAMPLES = "InsufficientSamples"
    MEASUREMENT_STALE = "MeasurementStale"

    YIELDING_TO_LS = "YieldingToLS"
    FULL_SPEED = "FullSpeed"

    REPORTING = "Reporting"
    HEARTBEAT_STALE = "HeartbeatStale"


_REFUSALS = (
    Reason.INSUFFICIENT_CAPACITY,
    Reason.NO_MATCHING_NODES,
    Reason.WOULD_BREAK_NEIGHBOUR_SLO,
    Reason.QUOTA_EXCEEDED,
)
_NOT_ACCEPTED = (
    Reason.INVALID,
    Reason.CLASS_NOT_ALLOWED,
    Reason.SECRET_MISSING,
    Reason.NAME_CONFLICT,
)

# Of replicas, as their agents report them. A port is opened once the model is in memory.
_NOT_LOADED = (Reason.LOADING, Reason.LOAD_FAILED, Reason.ENGINE_FAILED, Reason.REFUSED)

# Type: (what True means, the reasons it may carry beside Pending).
CONDITIONS: dict[ConditionType, tuple[str, tuple[Reason, ...]]] = {
    ConditionType.READY: (
        "every wanted replica of this generation answers",
        (
            Reason.REPLICAS_READY,
            Reason.REPLICAS_UNAVAILABLE,
            Reason.PAUSED,
            *_NOT_LOADED,
            Reason.PORT_UNAVAILABLE,
            *_NOT_ACCEPTED,
            *_REFUSALS,
        ),
    ),
    ConditionType.ACCEPTED: (
        "the object passed validation, its namespace may use its class, and what it names exists",
        (Reason.VALID, *_NOT_ACCEPTED),
    ),
    ConditionType.SCHEDULED: (
        "every wanted replica has a device",
        (Reason.PLACED, *_REFUSALS, Reason.PAUSED),
    ),
    ConditionType.MODEL_LOADED: (
        "every placed replica has the model's weights in memory",
        (Reason.LOADED, *_NOT_LOADED, Reason.REPLICAS_UNAVAILABLE, Reason.PAUSED),
    ),
    ConditionType.SERVING: (
        "at least one replica answers",
        (Reason.REPLICAS_READY, Reason.REPLICAS_UNAVAILABLE, Reason.PAUSED),
    ),
    ConditionType.PROGRESSING: (
        "a change is being carried out",
        (Reason.ROLLING_OUT, Reason.RECREATING, Reason.DRAINING, Reason.COMPLETE),
    ),
    ConditionType.SLO_ATTAINED: (
        "LS only: measured attained/offered is at or above the objective",
        (
            Reason.ATTAINED,
            Reason.TTFT_MISSED,
            Reason.TPOT_MISSED,
            Reason.TTFT_AND_TPOT_MISSED,
            Reason.REFUSED_FOR_CAPACITY,
            Reason.NO_TRAFFIC,
            Reason.INSUFFICIENT_SAMPLES,
            Reason.MEASUREMENT_STALE,
        ),
    ),
    ConditionType.THROTTLED: (
        "BE only: it yields to the LS services named in the message",
        (Reason.YIELDING_TO_LS, Reason.FULL_SPEED, Reason.MEASUREMENT_STALE),
    ),
    ConditionType.NODES_REPORTING: (
        "every node that serves it has reported lately",
        (Reason.REPORTING, Reason.HEARTBEAT_STALE),
    ),
}

# What each reason says, and what to do about it where something can be done.
REASONS: dict[Reason, str] = {
    Reason.PENDING: "nothing is known yet, or nothing is there that it could speak of",
    Reason.VALID: "the object can be carried out",
    Reason.INVALID: "a field is wrong; the message names it, its value and what to write instead. "
    "Replicas that run keep the last valid spec",
    Reason.CLASS_NOT_ALLOWED: "the namespace may not use this class; ask for it in the "
    "namespace's label omniserve.io/classes",
    Reason.SECRET_MISSING: "a Secret that the object names is missing or empty; create it",
    Reason.NAME_CONFLICT: "a Service of the object's name exists and belongs to something else; "
    "rename one of them",
    Reason.PLACED: "every wanted replica has a device; status.placements says why there",
    Reason.INSUFFICIENT_CAPACITY: "nodes match, but none has a device, host cores or host KV "
    "free; the message has the numbers. Clears by itself when a node joins",
    Reason.NO_MATCHING_NODES: "no node with an agent matches the selector, tolerations, volumes "
    "and taints; the message counts them",
    Reason.WOULD_BREAK_NEIGHBOUR_SLO: "there is a place, but a service that is there already is "
    "predicted to miss its SLO; the message has both numbers",
    Reason.QUOTA_EXCEEDED: "the namespace's annotation omniserve.io/max-replicas is used up",
    Reason.LOADED: "all weights are in memory",
    Reason.LOADING: "weights are being fetched or loaded; the message has the progress",
    Reason.LOAD_FAILED: "an agent could not load the model; the message has its words",
    Reason.ENGINE_FAILED: "an engine process failed too often, or in a way that would not be other "
    "next time; the message has its words. It is tried again after 10 s to 5 min",
    Reason.REFUSED: "a node cannot carry out what it was told; the message has figures",
    Reason.PORT_UNAVAILABLE: "a node cannot listen on status.port; the message says why. The model "
    "is in memory there",
    Reason.REPLICAS_READY: "each replica counted here has answered a real completion",
    Reason.REPLICAS_UNAVAILABLE: "replicas have a device but do not answer yet, or not any more",
    Reason.PAUSED: "spec.state is Paused or spec.replicas is 0",
    Reason.ROLLING_OUT: "new replicas are started before old ones go",
    Reason.RECREATING: "there is no room for a new engine beside the old one, so the old one goes "
    "first: expect a gap on that replica",
    Reason.DRAINING: "a node is leaving (cordon, taint or agent upgrade); replacements come first "
    "where they fit",
    Reason.COMPLETE: "nothing is being changed",
    Reason.ATTAINED: "attained/offered is at or above spec.slo.objectivePercent",
    Reason.TTFT_MISSED: "most misses are first tokens that came too late",
    Reason.TPOT_MISSED: "most misses are output tokens that came too slowly",
    Reason.TTFT_AND_TPOT_MISSED: "both times are missed",
    Reason.REFUSED_FOR_CAPACITY: "most misses are requests refused with 429 or failed by us",
    Reason.NO_TRAFFIC: "no request was offered within the window",
    Reason.INSUFFICIENT_SAMPLES: "fewer requests than spec.slo.minSamples within the window",
    Reason.MEASUREMENT_STALE: "the nodes that measure it have not reported for 60 s",
    Reason.YIELDING_TO_LS: "it is held back by the LS services in the message",
    Reason.FULL_SPEED: "it is not held back",
    Reason.REPORTING: "every node that serves it reported within 60 s",
    Reason.HEARTBEAT_STALE: "the nodes in the message have not reported for 60 s; their replicas "
    "may still serve",
}
