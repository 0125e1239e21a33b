"""Steps from what runs to what is wanted: tables, and a world in which they always arrive."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omniserve_agent.node.cluster.assigned import Room, ambiguities, identity
from omniserve_agent.node.cluster.diff import (
    ChangeDoor,
    CloseDoor,
    Door,
    OpenDoor,
    RunningEngine,
    StartEngine,
    StopEngine,
    diff,
)
from omniserve_crds.servingnode import EngineAssignment, ServiceAssignment, ServingNodeSpec

MIB = 1 << 20
ROOM = Room(("cpu", "cuda:0", "cuda:1"), host_cores=4, host_kv_bytes=256 * MIB)


def running(assignment, **fields):
    return RunningEngine(identity(assignment), **{"model_ready": True, **fields})


def door(assignment, engine, **fields):
    return Door(assignment, identity(engine), **fields)


def test_nothing_wanted_and_nothing_there_is_no_step(write):
    assert diff([], [], write.spec(), ROOM).now == ()


def test_an_engine_is_started_before_its_doors_open(write):
    wanted = write.spec([write.engine()], [write.service()])
    assert diff([], [], wanted, ROOM).now == (StartEngine(write.engine()),)
    preparing = running(write.engine(), model_ready=False)
    assert diff([preparing], [], wanted, ROOM).now == ()
    ready = running(write.engine())
    assert diff([ready], [], wanted, ROOM).now == (
        OpenDoor(write.service(), identity(write.engine())),
    )


def test_what_is_as_wanted_stays(write):
    wanted = write.spec([write.engine()], [write.service()])
    there = [door(write.service(), write.engine())]
    assert diff([running(write.engine())], there, wanted, ROOM).now == ()


@pytest.mark.parametrize(
    "change",
    [
        {"service_class": "LS", "slo": {"ttftMs": 1, "tpotMs": 1}},
        {"priority": 5},
        {"api_keys_secret": "svc-u1"},
        {"served_name": "other"},
        {"drain": True},
        {"generation": 2},
    ],
)
def test_a_service_changes_where_it_is(write, change):
    changed = write.service(**change)
    there = [door(write.service(), write.engine())]
    steps = diff([running(write.engine())], there, write.spec([write.engine()], [changed]), ROOM)
    assert steps.now == (ChangeDoor(changed),)


def test_weights_bytes_learned_later_restart_nothing(write):
    wanted = write.spec([write.engine(weights_bytes=7, credentials_secret="cred-1")])
    assert diff([running(write.engine())], [], wanted, ROOM).now == ()


def test_a_new_port_opens_while_the_old_one_drains(write):
    moved = write.service(port=20009)
    there = [door(write.service(), write.engine())]
    steps = diff([running(write.engine())], there, write.spec([write.engine()], [moved]), ROOM)
    assert steps.now == (CloseDoor("u1", 20001), OpenDoor(moved, identity(write.engine())))


@pytest.mark.parametrize(
    "change",
    [
        {"key": "b"},
        {"cores": 2},
        {"kv_mib": 65},
        {"uri": "python://package/other.gguf"},
        {"revision": "abc"},
        {"dtype": "float32"},
        {"max_model_len": 128},
    ],
)
def test_another_engine_on_the_device_waits_for_doors_then_the_engine(write, change):
    old, new = write.engine(), write.engine(**change)
    wanted = write.spec([new], [write.service()])
    there = door(write.service(), old)
    first = diff([running(old)], [there], wanted, ROOM)
    assert first.now == (CloseDoor("u1", 20001),)
    assert "waits for the engine of python://package/a.gguf" in first.waiting["cpu"]
    closing = dataclasses.replace(there, closing=True, listening=False)
    assert diff([running(old)], [closing], wanted, ROOM).now == ()
    assert diff([running(old)], [], wanted, ROOM).now == (StopEngine("cpu"),)
    assert diff([running(old, stopping=True)], [], wanted, ROOM).now == ()
    assert diff([], [], wanted, ROOM).now == (StartEngine(new),)


def test_a_service_moves_to_an_engine_that_is_up_before_its_old_one_stops(write):
    old, new = write.engine("cuda:0"), write.engine("cuda:1", key="b")
    moved = write.service(device="cuda:1")
    there = door(write.service(device="cuda:0"), old)
    steps = diff([running(old), running(new)], [there], write.spec([new], [moved]), ROOM)
    assert steps.now == (CloseDoor("u1", 20001),)  # the port is the old door's for now
    closing = dataclasses.replace(there, closing=True, listening=False)
    after = diff([running(old), running(new)], [closing], write.spec([new], [moved]), ROOM)
    assert after.now == (OpenDoor(moved, identity(new)),)


def test_resources_that_something_still_holds_are_waited_for(write):
    leaving, coming = write.engine("cuda:0", cores=3), write.engine("cuda:1", cores=3)
    steps = diff([running(leaving)], [], write.spec([coming]), ROOM)
    assert steps.now == (StopEngine("cuda:0"),)
    assert steps.waiting == {
        "cuda:1": "waits for other engines to end: needs 3 host cores and 67108864 bytes of host "
        "KV, free are 1 and 201326592"
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"device": "cuda:7"}, "device 'cuda:7' is not here; there are cpu, cuda:0, cuda:1"),
        ({"cores": 5}, r"hostCores is 5; 1 to 4 can be had \(4 in all\)"),
        ({"cores": 0}, "hostCores is 0; 1 to 4"),
        ({"kv_mib": 0}, "hostKvBytes is 0; 1048576 to 268435456"),
        ({"kv_mib": 257}, "hostKvBytes is 269484032; 1048576 to 268435456"),
    ],
)
def test_what_can_never_be_is_refused_with_figures(write, change, message):
    import re

    steps = diff([], [], write.spec([write.engine(**change)]), ROOM)
    assert steps.now == ()
    assert re.match(message, steps.refused[change.get("device", "cpu")])


def test_what_runs_keeps_its_share_when_the_spec_promises_too_much(write):
    old, greedy = write.engine("cuda:1", cores=2), write.engine("cuda:0", cores=3)
    steps = diff([running(old)], [], write.spec([greedy, old]), ROOM)
    assert steps.now == ()
    assert "1 to 2 can be had" in steps.refused["cuda:0"]


def test_services_without_an_engine_or_with_a_taken_port_are_refused(write):
    wanted = write.spec(
        [write.engine()],
        [write.service(), write.service("u2"), write.service("u3", 20003, device="cuda:0")],
    )
    steps = diff([running(write.engine())], [], wanted, ROOM)
    assert steps.now == (OpenDoor(write.service(), identity(write.engine())),)
    assert steps.refused_services == {
        "u2": "port 20001 is team/u1's on this node",
        "u3": "no engine is assigned to device 'cuda:0'",
    }


def test_what_is_said_twice_is_named(write):
    twice = write.spec(
        [write.engine(), write.engine(key="b")], [write.service(), write.service(port=9)]
    )
    assert ambiguities(twice) == [
        "device cpu has 2 engines; the first is taken",
        "service u1 is assigned 2 times; the first is taken",
    ]
    assert ambiguities(write.spec([write.engine()], [write.service()])) == []


# ---- a world in which steps take their time ------------------------------------------------------

devices = st.sampled_from(ROOM.devices)
engines = st.builds(
    lambda device, key, cores, kv: EngineAssignment(
        device=device, key=key, uri=f"python://p/{key}", host_cores=cores, host_kv_bytes=kv * MIB
    ),
    devices,
    st.sampled_from("ab"),
    st.integers(0, 5),
    st.sampled_from([0, 64, 128, 300]),
)
services = st.builds(
    lambda uid, port, device, priority: ServiceAssignment(
        uid=uid,
        generation=1,
        namespace="n",
        name=uid,
        served_name=uid,
        service_class="BE",
        device=device,
        port=port,
        priority=priority,
    ),
    st.sampled_from("uvw"),
    st.integers(1, 3),
    devices,
    st.integers(0, 1),
)
specs = st.builds(
    lambda e, s: ServingNodeSpec(engines=e, assignments=s),
    st.lists(engines, max_size=3),
    st.lists(services, max_size=4),
)


class World:
    """Carries out steps; what takes time is finished by `settle`."""

    def __init__(self):
        self.engines = []
        self.doors = []

    def step(self, spec):
        steps = diff(self.engines, self.doors, spec, ROOM)
        for step in steps.now:
            self.take(step, spec)
        self.check()
        return steps

    def take(self, step, spec):
        match step:
            case StartEngine():
                assert step.assignment.device not in [e.identity.device for e in self.engines]
                self.engines.append(RunningEngine(identity(step.assignment)))
            case StopEngine():
                (held,) = [e for e in self.engines if e.identity.device == step.device]
                assert not held.stopping
                assert held.identity not in [d.engine for d in self.doors]
                self.engines.remove(held)
                self.engines.append(dataclasses.replace(held, stopping=True))
            case OpenDoor():
                assert step.engine in [e.identity for e in self.engines if e.model_ready]
                self.doors.append(Door(step.assignment, step.engine))
            case CloseDoor():
                self.close(step)
            case ChangeDoor():
                for index, door in enumerate(self.doors):
                    same = (door.assignment.uid, door.assignment.port)
                    if same == (step.assignment.uid, step.assignment.port) and not door.closing:
                        self.doors[index] = dataclasses.replace(door, assignment=step.assignment)

    def close(self, step):
        for index, door in enumerate(self.doors):
            if (door.assignment.uid, door.assignment.port) == (step.uid, step.port):
                self.doors[index] = dataclasses.replace(door, closing=True, listening=False)

    def settle(self):
        self.engines = [
            dataclasses.replace(engine, model_ready=True)
            for engine in self.engines
            if not engine.stopping
        ]
        self.doors = [door for door in self.doors if not door.closing]

    def check(self):
        held = [engine.identity for engine in self.engines]
        assert sum(engine.host_cores for engine in held) <= ROOM.host_cores
        assert sum(engine.host_kv_bytes for engine in held) <= ROOM.host_kv_bytes
        ports = [door.assignment.port for door in self.doors if door.listening]
        assert len(ports) == len(set(ports))


def firsts(spec):
    """The engine that counts, by device."""
    return {engine.device: engine for engine in reversed(spec.engines)}


@settings(max_examples=300)
@given(st.lists(st.tuples(specs, st.booleans()), min_size=1, max_size=4))
def test_any_sequence_of_specs_arrives_where_the_last_one_wants(sequence):
    world = World()
    for wanted, settles in sequence:
        before = {e.identity for e in world.engines if not e.stopping}
        steps = world.step(wanted)
        sound = [e for d, e in firsts(wanted).items() if d not in steps.refused]
        kept = {identity(engine) for engine in sound} & before
        assert kept <= {e.identity for e in world.engines if not e.stopping}
        if settles:
            world.settle()
    last = sequence[-1][0]
    for _ in range(8):
        world.settle()
        steps = world.step(last)
    assert steps.now == ()
    assert steps.waiting == {}
    sound = {d: identity(e) for d, e in firsts(last).items() if d not in steps.refused}
    assert {e.identity.device: e.identity for e in world.engines} == sound
    wanted_uids = {s.uid for s in last.assignments} - steps.refused_services.keys()
    by_uid = {}
    for assignment in last.assignments:
        by_uid.setdefault(assignment.uid, assignment)
    expected = {uid for uid in wanted_uids if by_uid[uid].device in sound}
    assert {door.assignment.uid for door in world.doors} == expected
    assert all(door.assignment == by_uid[door.assignment.uid] for door in world.doors)
