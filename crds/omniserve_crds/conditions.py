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

    PLACED = "Placed"
    INSUFFICIENT_CAPACITY = "InsufficientCapacity"
    NO_MATCHING_NODES = "NoMatchingNodes"
    WOULD_BREAK_NEIGHBOUR_SLO = "WouldBreakNeighbourSLO"
    QUOTA_EXCEEDED = "QuotaExceeded"

    LOADED = "Loaded"
    LOADING = "Loading"
    LOAD_FAILED = "LoadFailed"

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


# Type: (what True means, the reasons it may carry beside Pending).
CONDITIONS: dict[ConditionType, tuple[str, tuple[Reason, ...]]] = {
    ConditionType.READY: (
        "every wanted replica of this generation answers",
        (Reason.REPLICAS_READY, Reason.REPLICAS_UNAVAILABLE, Reason.PAUSED),
    ),
    ConditionType.ACCEPTED: (
        "the object passed validation and the namespace may use its class",
        (Reason.VALID, Reason.INVALID, Reason.CLASS_NOT_ALLOWED),
    ),
    ConditionType.SCHEDULED: (
        "every wanted replica has a device",
        (
            Reason.PLACED,
            Reason.INSUFFICIENT_CAPACITY,
            Reason.NO_MATCHING_NODES,
            Reason.WOULD_BREAK_NEIGHBOUR_SLO,
            Reason.QUOTA_EXCEEDED,
            Reason.PAUSED,
        ),
    ),
    ConditionType.MODEL_LOADED: (
        "every placed replica has the model's weights in memory",
        (Reason.LOADED, Reason.LOADING, Reason.LOAD_FAILED, Reason.PAUSED),
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
        (Reason.YIELDING_TO_LS, Reason.FULL_SPEED),
    ),
    ConditionType.NODES_REPORTING: (
        "every node that serves it has reported lately",
        (Reason.REPORTING, Reason.HEARTBEAT_STALE),
    ),
}
