"""Where a service is on this node, in the words of its report. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from omniserve_crds.servingnode import RunReason, ServiceRunState

State, Reason = ServiceRunState, RunReason
LONGEST_MESSAGE = 1024


@dataclass(frozen=True)
class EngineFacts:
    """An engine, its model and its process. `failure`: why it rests before its next attempt."""

    failure: tuple[RunReason, str] | None = None
    preparing: tuple[str, float] | None = None  # stage and fraction, until the model is on disk
    ready: bool = False
    progress: str = ""  # of the process
    was_ready: bool = False  # in this life or an earlier one


@dataclass(frozen=True)
class DoorFacts:
    """A service's port. `probe_problem` None: no probe has failed since the engine came up."""

    error: str | None = None  # why it cannot listen
    draining: bool = False
    in_flight: int = 0
    probed: bool = False  # the engine that is there has completed a request of this service
    probe_problem: str | None = None


@dataclass(frozen=True)
class ServiceFacts:
    """Everything that decides a service's state."""

    ending: bool = False  # the agent is stopping
    refused: str | None = None
    waiting: str | None = None
    keys_missing: str | None = None
    engine: EngineFacts | None = None
    door: DoorFacts | None = None


@dataclass(frozen=True)
class RunState:
    """State, reason and message of a ServiceReport."""

    state: ServiceRunState
    reason: RunReason
    message: str = ""
    progress_percent: int | None = None

    @property
    def edge(self) -> tuple[str, str]:
        """What is reported at once when it changes."""
        return self.state, self.reason


def run_state(facts: ServiceFacts) -> RunState:
    """The first thing that stands between the service and its requests."""
    if facts.door is not None and facts.door.draining:
        return _draining(facts.door.in_flight)
    if facts.ending:
        return _draining(0)
    if facts.refused is not None:
        return RunState(State.FAILED, Reason.REFUSED, _cut(facts.refused))
    if facts.engine is None:
        waiting = facts.waiting or "waits for its engine to be started"
        return RunState(State.PENDING, Reason.WAITING_FOR_RESOURCES, _cut(waiting))
    return _engine_state(facts.engine) or _door_state(facts)


def _draining(in_flight: int) -> RunState:
    if in_flight:
        return RunState(State.DRAINING, Reason.DRAINING, f"{in_flight} requests are running")
    return RunState(State.DRAINING, Reason.DRAINED, "nothing runs any more")


def _engine_state(engine: EngineFacts) -> RunState | None:
    """None: the engine takes requests."""
    if engine.failure is not None:
        reason, message = engine.failure
        return RunState(State.FAILED, reason, _cut(message))
    if engine.preparing is not None:
        stage, fraction = engine.preparing
        percent = int(100 * min(1.0, max(0.0, fraction)))
        return RunState(State.LOADING, Reason.PREPARING, f"{stage}: {percent}%", percent)
    if engine.ready:
        return None
    reason = Reason.ENGINE_RESTARTING if engine.was_ready else Reason.STARTING
    return RunState(State.LOADING, reason, _cut(engine.progress))


def _door_state(facts: ServiceFacts) -> RunState:
    door = facts.door
    if door is not None and door.error is not None:
        return RunState(State.FAILED, Reason.PORT_UNAVAILABLE, _cut(door.error))
    if facts.keys_missing is not None:
        return RunState(State.PENDING, Reason.KEYS_MISSING, _cut(facts.keys_missing))
    if door is None or not door.probed:
        problem = door.probe_problem if door is not None else None
        return RunState(State.LOADING, Reason.PROBING, _cut(problem or ""))
    return RunState(State.READY, Reason.SERVING)


def _cut(text: str) -> str:
    """On one line, within the field's limit."""
    line = " ".join(text.split())
    return line if len(line) <= LONGEST_MESSAGE else line[: LONGEST_MESSAGE - 1] + "…"
