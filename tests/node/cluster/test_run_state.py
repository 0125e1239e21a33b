"""What a service's report says, from what stands in its way."""

import pytest

from omniserve_agent.node.cluster.run_state import (
    LONGEST_MESSAGE,
    DoorFacts,
    EngineFacts,
    RunState,
    ServiceFacts,
    run_state,
)
from omniserve_crds.servingnode import RunReason as Reason
from omniserve_crds.servingnode import ServiceRunState as State

UP = EngineFacts(ready=True, progress="ready")


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (
            ServiceFacts(refused="no such device"),
            RunState(State.FAILED, Reason.REFUSED, "no such device"),
        ),
        (
            ServiceFacts(waiting="for another engine"),
            RunState(State.PENDING, Reason.WAITING_FOR_RESOURCES, "for another engine"),
        ),
        (
            ServiceFacts(engine=EngineFacts(preparing=("copying", 0.257))),
            RunState(State.LOADING, Reason.PREPARING, "copying: 25%", 25),
        ),
        (
            ServiceFacts(engine=EngineFacts(progress="reading weights: 50%")),
            RunState(State.LOADING, Reason.STARTING, "reading weights: 50%"),
        ),
        (
            ServiceFacts(engine=EngineFacts(progress="the engine\nwas killed", was_ready=True)),
            RunState(State.LOADING, Reason.ENGINE_RESTARTING, "the engine was killed"),
        ),
        (
            ServiceFacts(engine=EngineFacts(failure=(Reason.LOAD_FAILED, "no such file"))),
            RunState(State.FAILED, Reason.LOAD_FAILED, "no such file"),
        ),
        (
            ServiceFacts(engine=UP, door=DoorFacts(error="port 1 on ::1: in use")),
            RunState(State.FAILED, Reason.PORT_UNAVAILABLE, "port 1 on ::1: in use"),
        ),
        (
            ServiceFacts(engine=UP, door=DoorFacts(probed=True), keys_missing="no Secret"),
            RunState(State.PENDING, Reason.KEYS_MISSING, "no Secret"),
        ),
        (ServiceFacts(engine=UP), RunState(State.LOADING, Reason.PROBING)),
        (
            ServiceFacts(engine=UP, door=DoorFacts(probe_problem="no token within 20 s")),
            RunState(State.LOADING, Reason.PROBING, "no token within 20 s"),
        ),
        (
            ServiceFacts(engine=UP, door=DoorFacts(probed=True)),
            RunState(State.READY, Reason.SERVING),
        ),
        (
            ServiceFacts(engine=UP, door=DoorFacts(probed=True, draining=True, in_flight=2)),
            RunState(State.DRAINING, Reason.DRAINING, "2 requests are running"),
        ),
        (
            ServiceFacts(engine=UP, door=DoorFacts(probed=True, draining=True)),
            RunState(State.DRAINING, Reason.DRAINED, "nothing runs any more"),
        ),
        (
            ServiceFacts(ending=True, engine=UP),
            RunState(State.DRAINING, Reason.DRAINED, "nothing runs any more"),
        ),
    ],
)
def test_state_reason_and_message(facts, expected):
    assert run_state(facts) == expected


def test_an_engine_that_is_gone_takes_readiness_with_it():
    probed = DoorFacts(probed=True)
    assert run_state(ServiceFacts(engine=EngineFacts(), door=probed)).state is State.LOADING


def test_messages_keep_to_the_fields_limit():
    state = run_state(ServiceFacts(refused="x" * 5000))
    assert len(state.message) == LONGEST_MESSAGE
    assert state.message.endswith("…")
