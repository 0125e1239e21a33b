"""Placement: who goes where, what moves, what is refused, and in which words."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omniserve_crds.conditions import Reason
from omniserve_crds.llmservice import ServiceClass
from omniserve_crds.servingnode import DeviceReport, LsWindow, ServiceRunState
from omniserve_operator.placement.plan import plan
from omniserve_operator.placement.result import Phase
from omniserve_operator.settings import Tenancy
from omniserve_operator.world import Taint, Verdict
from support.clusters import (
    GIB,
    agent,
    carried_out,
    changed,
    figures,
    named,
    node,
    service,
    settled,
    window,
    with_node,
    with_service,
    world,
)

OTHER = {"uri": "hf://org/other"}


def places(result, subject):
    return [(r.node, r.device) for r in result.services[subject.uid].staying]


def phases(result, subject):
    return {r.node: r.phase for r in result.services[subject.uid].replicas}


def scheduled(result, subject):
    return result.services[subject.uid].scheduled


def progressing(result, subject):
    return result.services[subject.uid].progressing


CHAT, BATCH = service("chat"), service("batch", "BE")


# ---- where ----------------------------------------------------------------------------------


def test_ls_and_be_of_one_model_share_an_engine():
    result = plan(world([CHAT, BATCH], [node("n1"), node("n2")]))
    assert places(result, CHAT) == places(result, BATCH) == [("n1", "cuda:0")]
    spec = result.nodes["n1"]
    assert [e.device for e in spec.engines] == ["cuda:0"]
    assert [a.name for a in spec.assignments] == ["batch", "chat"]
    assert {a.port for a in spec.assignments} == {20_000, 20_001}
    assert not result.nodes["n2"].engines
    assert "joins the engine of default/chat" in result.services[BATCH.uid].replicas[0].why
    assert scheduled(result, CHAT).reason is Reason.PLACED


def test_other_models_get_other_devices_with_disjoint_shares():
    second = service("second", model=OTHER)
    result = plan(world([CHAT, second], [node("n1", 2, cores=9, kv_bytes=3 * GIB)]))
    engines = result.nodes["n1"].engines
    assert [e.device for e in engines] == ["cuda:0", "cuda:1"]
    assert [e.host_cores for e in engines] == [5, 4]
    assert sum(e.host_kv_bytes for e in engines) <= 3 * GIB
    assert engines[0].key != engines[1].key


def test_replicas_stand_on_different_nodes():
    chat = service("chat", replicas=2)
    result = plan(world([chat], [node("n1", 2), node("n2")]))
    assert places(result, chat) == [("n1", "cuda:0"), ("n2", "cuda:0")]


def test_ls_goes_to_the_less_loaded_engine():
    first, second = service("a", replicas=2), service("b")
    before = settled(world([first], [node("n1"), node("n2")]), plan)
    busy = figures(named(before, "n1"), "cuda:0", iteration_micros=30_000, row_micros=2_000)
    idle = figures(named(before, "n2"), "cuda:0", iteration_micros=5_000, row_micros=2_000)
    after = with_service(with_node(with_node(before, busy), idle), second)
    result = plan(after)
    assert places(result, second) == [("n2", "cuda:0")]
    why = result.services[second.uid].replicas[0].why
    assert "adds 2 ms to default/a's TPOT (5 to 7 of 50 ms)" in why


def test_ls_takes_an_empty_device_before_a_loaded_engine():
    before = settled(world([CHAT], [node("n1"), node("n2")]), plan)
    busy = figures(named(before, "n1"), "cuda:0", iteration_micros=20_000, row_micros=1_000)
    second = service("second")
    assert places(plan(with_service(with_node(before, busy), second)), second) == [("n2", "cuda:0")]


def test_be_does_not_count_against_ls():
    before = settled(world([CHAT], [node("n1")]), plan)
    busy = figures(
        *(named(before, "n1"), "cuda:0"),
        iteration_micros=60_000,
        be_iteration_micros=40_000,
        row_micros=1_000,
    )
    second = service("second")
    assert places(plan(with_service(with_node(before, busy), second)), second)


def test_be_goes_where_the_error_budget_has_most_room():
    chat = service("chat", replicas=2)
    before = settled(world([chat], [node("n1"), node("n2")]), plan)
    tight = window(named(before, "n1"), chat.uid, ls=LsWindow(offered=1000, attained=991))
    loose = window(named(before, "n2"), chat.uid, ls=LsWindow(offered=1000, attained=1000))
    result = plan(with_service(with_node(with_node(before, tight), loose), BATCH))
    assert places(result, BATCH) == [("n2", "cuda:0")]
    assert "100% of the error budgets left" in result.services[BATCH.uid].replicas[0].why


def test_ls_is_placed_before_be_and_by_priority():
    late = service("late", created="2026-02-01T00:00:00Z", priority=5, model=OTHER)
    result = plan(world([BATCH, CHAT, late], [node("n1")]))
    assert places(result, late)
    assert not places(result, CHAT)
    assert not places(result, BATCH)


def test_selector_tolerations_and_volumes():
    picky = service(
        "picky",
        placement={
            "nodeSelector": {"pool": "a"},
            "tolerations": [{"key": "gpu", "operator": "Exists"}],
        },
        model={"uri": "pvc://weights/m"},
    )
    plain, right = node("n1"), node("n2", labels={"pool": "a"})
    volumes = right.status.model_copy(update={"model_volumes": ["weights"]})
    right = replace(right, status=volumes, taints=(Taint("gpu", "yes", "NoSchedule"),))
    result = plan(world([picky, CHAT], [plain, right]))
    assert places(result, picky) == [("n2", "cuda:0")]
    assert places(result, CHAT) == [("n1", "cuda:0")]


def test_exclusive_bears_no_neighbour():
    alone = service("alone", placement={"colocation": "Exclusive"})
    result = plan(world([alone, CHAT], [node("n1"), node("n2")]))
    assert places(result, alone) != places(result, CHAT)
    refused = plan(world([alone, CHAT], [node("n1")]))
    assert scheduled(refused, CHAT).reason is Reason.INSUFFICIENT_CAPACITY
    assert "default/alone has it exclusively" in scheduled(refused, CHAT).message


def test_becoming_exclusive_leaves_the_shared_device():
    before = settled(world([CHAT, BATCH], [node("n1"), node("n2")]), plan)
    alone = changed(CHAT, placement={"colocation": "Exclusive"})
    after = settled(with_service(before, alone), plan)
    assert places(plan(after), alone) == [("n2", "cuda:0")]
    assert places(plan(after), BATCH) == [("n1", "cuda:0")]


# ---- refusals -------------------------------------------------------------------------------


def test_no_matching_nodes_names_what_does_not_match():
    picky = service("picky", placement={"nodeSelector": {"pool": "a"}})
    verdict = scheduled(plan(world([picky], [node("n1"), node("n2", agent=None)])), picky)
    assert verdict.reason is Reason.NO_MATCHING_NODES
    assert verdict.message == (
        "0 of 1 replicas have a device: 2 of 2 candidates do not match: "
        "n1: label pool is absent, wanted a; n2: no agent runs on it"
    )


def test_no_node_at_all():
    verdict = scheduled(plan(world([CHAT])), CHAT)
    assert verdict.reason is Reason.NO_MATCHING_NODES
    assert verdict.message == "0 of 1 replicas have a device: no other node runs an agent"


def test_insufficient_capacity_has_numbers_and_clears_itself():
    second = service("second", model=OTHER)
    before = settled(world([CHAT, second], [node("n1")]), plan)
    verdict = scheduled(plan(before), second)
    assert verdict.reason is Reason.INSUFFICIENT_CAPACITY
    assert "1 of 1 candidates have no room: n1/cuda:0: its engine runs hf://org/name for" in (
        verdict.message
    )
    joined = replace(before, nodes=(*before.nodes, node("n2")))
    assert places(plan(joined), second) == [("n2", "cuda:0")]


def test_too_few_host_cores():
    verdict = scheduled(plan(world([CHAT], [node("n1", cores=0)])), CHAT)
    assert verdict.reason is Reason.INSUFFICIENT_CAPACITY
    assert "host cores free: 0 of 0" in verdict.message


@pytest.mark.parametrize("newcomer", [service("second"), BATCH], ids=["LS", "BE"])
def test_a_neighbour_without_error_budget_is_left_alone(newcomer):
    before = settled(world([CHAT], [node("n1")]), plan)
    spent = window(named(before, "n1"), CHAT.uid, ls=LsWindow(offered=1000, attained=971))
    verdict = scheduled(plan(with_service(with_node(before, spent), newcomer)), newcomer)
    assert verdict.reason is Reason.WOULD_BREAK_NEIGHBOUR_SLO
    assert "default/chat attains 97.1 % of 99 % there" in verdict.message


def test_a_neighbours_tpot_is_predicted():
    before = settled(world([CHAT], [node("n1")]), plan)
    busy = figures(named(before, "n1"), "cuda:0", iteration_micros=48_000, row_micros=3_000)
    second = service("second", slo={"ttftMs": 500, "tpotMs": 500})
    verdict = scheduled(plan(with_service(with_node(before, busy), second)), second)
    assert verdict.reason is Reason.WOULD_BREAK_NEIGHBOUR_SLO
    assert "default/chat's TPOT would be 51 ms of 50 ms (now 48 ms)" in verdict.message


def test_its_own_tpot_is_a_matter_of_capacity():
    before = settled(world([CHAT], [node("n1")]), plan)
    busy = figures(named(before, "n1"), "cuda:0", iteration_micros=40_000, row_micros=3_000)
    second = service("second", slo={"ttftMs": 500, "tpotMs": 20})
    verdict = scheduled(plan(with_service(with_node(before, busy), second)), second)
    assert verdict.reason is Reason.INSUFFICIENT_CAPACITY
    assert "default/second's TPOT would be 43 ms of 20 ms" in verdict.message


def test_be_needs_free_host_kv():
    before = settled(world([CHAT], [node("n1")]), plan)
    full = figures(named(before, "n1"), "cuda:0", host_kv_free_bytes=100 << 20)
    verdict = scheduled(plan(with_service(with_node(before, full), BATCH)), BATCH)
    assert verdict.reason is Reason.INSUFFICIENT_CAPACITY
    assert "host KV free: 100 of 8192 MiB" in verdict.message


def test_quota_is_given_to_the_oldest():
    young = service("young", created="2026-02-01T00:00:00Z", replicas=2, priority=9)
    old = service("old", replicas=2)
    limited = world(
        [young, old],
        [node(f"n{i}") for i in range(4)],
        default_tenancy=Tenancy(max_replicas=3),
    )
    result = plan(limited)
    assert len(places(result, old)) == 2
    assert len(places(result, young)) == 1
    verdict = scheduled(result, young)
    assert verdict.reason is Reason.QUOTA_EXCEEDED
    assert verdict.message.startswith("1 of 2 replicas: namespace default may have 3 in all")


def test_what_is_not_accepted_uses_up_no_quota():
    only_be = Tenancy(classes=frozenset({ServiceClass.BE}), max_replicas=1)
    result = plan(world([CHAT, BATCH], [node("n1")], default_tenancy=only_be))
    assert places(result, BATCH)


def test_a_failed_replica_is_no_change_that_goes_on():
    before = settled(world([CHAT], [node("n1")]), plan)
    failed = with_node(before, window(named(before, "n1"), CHAT.uid, state=ServiceRunState.FAILED))
    assert progressing(plan(failed), CHAT).reason is Reason.COMPLETE
    loading = with_node(
        before, window(named(before, "n1"), CHAT.uid, state=ServiceRunState.LOADING)
    )
    assert progressing(plan(loading), CHAT).reason is Reason.ROLLING_OUT


def test_a_class_that_is_not_allowed():
    only_be = Tenancy(classes=frozenset({ServiceClass.BE}))
    result = plan(world([CHAT], [node("n1")], tenancies={"default": only_be}))
    accepted = result.services[CHAT.uid].accepted
    assert accepted.reason is Reason.CLASS_NOT_ALLOWED
    assert "spec.class: is LS; namespace default may use: BE" in accepted.message
    assert not places(result, CHAT)


# ---- changes --------------------------------------------------------------------------------


def test_a_class_change_restarts_nothing():
    before = settled(world([CHAT, BATCH], [node("n1"), node("n2")]), plan)
    night = changed(CHAT, **{"class": "BE"})
    result = plan(with_service(before, night))
    assert result.nodes["n1"].engines == named(before, "n1").spec.engines
    told = {a.name: a for a in result.nodes["n1"].assignments}
    assert told["chat"].service_class is ServiceClass.BE
    assert told["chat"].generation == 2
    assert told["chat"].slo is None


def test_model_change_starts_the_new_one_first():
    before = settled(world([CHAT], [node("n1"), node("n2")]), plan)
    moved = changed(CHAT, model=OTHER)
    first = plan(with_service(before, moved))
    assert phases(first, moved) == {"n1": Phase.LEAVES, "n2": Phase.STAYS}
    assert progressing(first, moved).reason is Reason.ROLLING_OUT
    loading = carried_out(with_service(before, moved), first, answer=False)
    assert phases(plan(loading), moved) == {"n1": Phase.LEAVES, "n2": Phase.STAYS}
    answering = carried_out(loading, plan(loading))
    assert phases(plan(answering), moved) == {"n1": Phase.DRAINS, "n2": Phase.STAYS}
    done = settled(answering, plan)
    assert phases(plan(done), moved) == {"n2": Phase.STAYS}
    assert progressing(plan(done), moved).reason is Reason.COMPLETE


def test_model_change_without_room_recreates():
    before = settled(world([CHAT], [node("n1")]), plan)
    moved = changed(CHAT, model=OTHER)
    result = plan(with_service(before, moved))
    assert phases(result, moved) == {"n1": Phase.STAYS}
    assert progressing(result, moved).reason is Reason.RECREATING
    assert [e.uri for e in result.nodes["n1"].engines] == ["hf://org/other"]


def test_recreation_goes_one_replica_at_a_time():
    chat = service("chat", replicas=2)
    before = settled(world([chat], [node("n1"), node("n2")]), plan)
    moved = changed(chat, model=OTHER)
    first = plan(with_service(before, moved))
    uris = {name: spec.engines[0].uri for name, spec in first.nodes.items()}
    assert sorted(uris.values()) == ["hf://org/name", "hf://org/other"]
    loading = carried_out(with_service(before, moved), first, answer=False)
    assert {n: s.engines[0].uri for n, s in plan(loading).nodes.items()} == uris
    done = settled(loading, plan)
    assert {n.spec.engines[0].uri for n in done.nodes} == {"hf://org/other"}


def test_an_engine_that_others_use_is_not_replaced():
    before = settled(world([CHAT, BATCH], [node("n1")]), plan)
    moved = changed(CHAT, model=OTHER)
    result = plan(with_service(before, moved))
    assert phases(result, moved) == {"n1": Phase.LEAVES}
    assert scheduled(result, moved).reason is Reason.INSUFFICIENT_CAPACITY
    assert "no room for a replacement yet" in progressing(result, moved).message
    both = with_service(with_service(before, moved), changed(BATCH, model=OTHER))
    done = settled(both, plan)
    assert places(plan(done), moved) == [("n1", "cuda:0")]
    assert len(named(done, "n1").spec.assignments) == 2


def test_scale_up_and_down():
    nodes = [node(f"n{i}") for i in range(3)]
    before = settled(world([CHAT], nodes), plan)
    more = settled(with_service(before, changed(CHAT, replicas=3)), plan)
    assert len(places(plan(more), CHAT)) == 3
    fewer = with_service(more, changed(named_service(more, CHAT), replicas=1))
    result = plan(fewer)
    assert sorted(phases(result, CHAT).values()) == [Phase.DRAINS, Phase.DRAINS, Phase.STAYS]
    assert len(places(plan(settled(fewer, plan)), CHAT)) == 1


def named_service(before, subject):
    return next(s for s in before.services if s.uid == subject.uid)


def test_scaling_down_takes_replicas_that_do_not_answer_first():
    chat = service("chat", replicas=2)
    before = settled(world([chat], [node("n1"), node("n2")]), plan)
    broken = window(named(before, "n1"), chat.uid, state=ServiceRunState.FAILED)
    result = plan(with_service(with_node(before, broken), changed(chat, replicas=1)))
    assert phases(result, chat) == {"n1": Phase.DRAINS, "n2": Phase.STAYS}


def test_pausing_drains_and_leaves_nothing():
    before = settled(world([CHAT], [node("n1")]), plan)
    paused = with_service(before, changed(CHAT, state="Paused"))
    assert phases(plan(paused), CHAT) == {"n1": Phase.DRAINS}
    after = settled(paused, plan)
    assert named(after, "n1").spec.assignments == []
    assert named(after, "n1").spec.engines == []
    assert scheduled(plan(after), CHAT).reason is Reason.PAUSED
    assert progressing(plan(after), CHAT).reason is Reason.COMPLETE


def test_a_deleted_service_leaves_every_node():
    before = settled(world([CHAT, BATCH], [node("n1")]), plan)
    result = plan(replace(before, services=(BATCH,)))
    assert [a.name for a in result.nodes["n1"].assignments] == ["batch"]


def test_what_is_not_accepted_runs_on_as_it_was():
    before = settled(world([CHAT], [node("n1")]), plan)
    wrong = replace(CHAT, spec=None, fault=Verdict(Reason.INVALID, "spec.x: unknown field"))
    result = plan(with_service(before, wrong))
    assert result.nodes["n1"] == named(before, "n1").spec
    assert scheduled(result, CHAT).reason is Reason.PLACED


# ---- nodes that go --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "goes",
    [
        {"cordoned": True},
        {"taints": (Taint("out", "", "NoExecute"),)},
        {"taints": (Taint("ToBeDeletedByClusterAutoscaler", "17", "NoSchedule"),)},
        {"silent_s": 61.0},
        {"labels": {"pool": "b"}},
    ],
    ids=["cordoned", "NoExecute", "to be deleted", "silent", "relabelled"],
)
def test_a_replacement_comes_first(goes):
    chat = service("chat", placement={"nodeSelector": {"pool": "a"}})
    pool = {"pool": "a"}
    before = settled(world([chat], [node("n1", labels=pool), node("n2", labels=pool)]), plan)
    gone = with_node(before, replace(named(before, "n1"), **goes))
    first = plan(gone)
    silent = "silent_s" in goes
    assert phases(first, chat) == {"n1": Phase.LEAVES, "n2": Phase.STAYS}
    done = settled(gone, plan)
    assert phases(plan(done), chat) == {"n2": Phase.STAYS}
    assert named(done, "n1").spec.assignments == []
    assert first.nodes["n1"].assignments[0].drain is False
    assert silent or named(done, "n2").spec.assignments


def test_without_room_elsewhere_a_cordoned_node_serves_on():
    before = settled(world([CHAT], [node("n1")]), plan)
    cordoned = with_node(before, replace(named(before, "n1"), cordoned=True))
    done = settled(cordoned, plan)
    assert phases(plan(done), CHAT) == {"n1": Phase.LEAVES}
    assert named(done, "n1").spec == named(before, "n1").spec
    assert scheduled(plan(done), CHAT).reason is Reason.NO_MATCHING_NODES
    assert progressing(plan(done), CHAT).reason is Reason.DRAINING


def test_an_uncordoned_node_keeps_its_replica_while_the_new_one_loads():
    before = settled(world([CHAT], [node("n1"), node("n2")]), plan)
    cordoned = with_node(before, replace(named(before, "n1"), cordoned=True))
    loading = carried_out(cordoned, plan(cordoned), answer=False)
    back = with_node(loading, replace(named(loading, "n1"), cordoned=False))
    done = settled(back, plan)
    assert phases(plan(done), CHAT) == {"n1": Phase.STAYS}


def test_a_restarting_agent_is_no_reason_to_move():
    before = settled(world([CHAT], [node("n1"), node("n2")]), plan)
    for pod in (None, agent("n1", ready=False), agent("n1", deleting=True)):
        blip = with_node(before, replace(named(before, "n1"), agent=pod))
        assert phases(plan(blip), CHAT) == {"n1": Phase.STAYS}


def test_a_node_that_is_gone_is_replaced():
    before = settled(world([CHAT], [node("n1"), node("n2")]), plan)
    result = plan(replace(before, nodes=(named(before, "n2"),)))
    assert places(result, CHAT) == [("n2", "cuda:0")]


def test_an_unhealthy_device_is_left():
    before = settled(world([CHAT], [node("n1"), node("n2")]), plan)
    sick = named(before, "n1")
    devices = [DeviceReport(id="cuda:0", healthy=False)]
    sick = replace(sick, status=sick.status.model_copy(update={"devices": devices}))
    assert places(plan(settled(with_node(before, sick), plan)), CHAT) == [("n2", "cuda:0")]


# ---- agent upgrades -------------------------------------------------------------------------


def upgrade(before):
    return replace(before, newest_templates={"omniserve-agent-gpu": "t2"})


def restarted(before, pods):
    """The pods are deleted and come back with the new template."""
    for pod in pods:
        name = pod.name.removeprefix("agent-")
        before = with_node(before, replace(named(before, name), agent=agent(name, template="t2")))
    return before


def test_agents_are_upgraded_one_node_at_a_time_and_emptied_first():
    before = upgrade(settled(world([CHAT], [node("n1"), node("n2"), node("n3")]), plan))
    order, served = [], []
    for _ in range(30):
        result = plan(before)
        assert len(result.restarts) <= 1
        assert sum(spec.drain for spec in result.nodes.values()) <= 1
        served.append(any(r.ready for r in result.services[CHAT.uid].replicas))
        order += [pod.name for pod in result.restarts]
        before = restarted(carried_out(before, result), result.restarts)
    assert order == ["agent-n1", "agent-n2", "agent-n3"]
    assert all(served)
    assert not any(spec.drain for spec in plan(before).nodes.values())


def test_a_single_node_is_upgraded_in_place():
    before = upgrade(settled(world([CHAT], [node("n1")]), plan))
    first = plan(before)
    assert first.closing == {"n1"}
    assert not first.nodes["n1"].drain
    withdrawn = carried_out(before, first)
    second = plan(withdrawn)
    assert second.nodes["n1"].drain
    assert second.nodes["n1"].engines == named(before, "n1").spec.engines
    assert not second.restarts
    drained = carried_out(withdrawn, second)
    assert [pod.name for pod in plan(drained).restarts] == ["agent-n1"]
    done = settled(restarted(drained, plan(drained).restarts), plan)
    assert not named(done, "n1").spec.drain


def test_a_node_that_does_not_drain_is_waited_for_with_a_limit():
    before = upgrade(settled(world([CHAT], [node("n1")]), plan))
    withdrawn = carried_out(before, plan(before))
    stuck = carried_out(withdrawn, plan(withdrawn), answer=False)
    subject = named(stuck, "n1")
    assert not plan(with_node(stuck, replace(subject, drained_s=29.0))).restarts
    assert plan(with_node(stuck, replace(subject, drained_s=30.0))).restarts


def test_an_unready_upgraded_agent_stops_the_upgrade():
    before = upgrade(settled(world([CHAT], [node("n1"), node("n2")]), plan))
    broken = replace(named(before, "n1"), agent=agent("n1", template="t2", ready=False))
    result = plan(with_node(before, broken))
    assert not result.restarts
    assert not any(spec.drain for spec in result.nodes.values())


# ---- properties -----------------------------------------------------------------------------

small_services = st.lists(
    st.builds(
        lambda index, cls, model, replicas, priority, exclusive: service(
            f"s{index}",
            cls,
            model={"uri": f"hf://org/m{model}"},
            replicas=replicas,
            priority=priority,
            placement={"colocation": "Exclusive" if exclusive else "Allowed"},
        ),
        st.integers(0, 9),
        st.sampled_from(["LS", "BE"]),
        st.integers(0, 2),
        st.integers(0, 3),
        st.integers(-2, 2),
        st.booleans(),
    ),
    max_size=8,
    unique_by=lambda s: s.uid,
)
small_nodes = st.lists(
    st.builds(
        lambda index, devices, cores, cordoned, silent: node(
            f"n{index}", devices, cores=cores, cordoned=cordoned, silent_s=100.0 if silent else 1.0
        ),
        st.integers(0, 9),
        st.integers(0, 3),
        st.integers(0, 9),
        st.booleans(),
        st.booleans(),
    ),
    max_size=5,
    unique_by=lambda n: n.name,
)


def check_invariants(before, result):
    for subject in before.nodes:
        spec = result.nodes[subject.name]
        devices = [e.device for e in spec.engines]
        assert len(devices) == len(set(devices))
        assert sum(e.host_cores for e in spec.engines) <= subject.status.host_cores
        assert sum(e.host_kv_bytes for e in spec.engines) <= subject.status.host_kv_bytes
        assert {a.device for a in spec.assignments} == set(devices)
        uids = [a.uid for a in spec.assignments]
        assert len(uids) == len(set(uids))
    numbers = [done.port for done in result.services.values()]
    assert len(numbers) == len(set(numbers))
    for subject in before.services:
        assert len(places(result, subject)) <= subject.wanted


@settings(max_examples=150, deadline=None)
@given(small_services, small_nodes, st.randoms(use_true_random=False))
def test_plans_are_sound_deterministic_and_stable(services, nodes, random):
    first = world(services, nodes)
    shuffled = world(random.sample(services, len(services)), random.sample(nodes, len(nodes)))
    assert plan(shuffled) == plan(first)
    check_invariants(first, plan(first))
    done = settled(first, plan)
    check_invariants(done, plan(done))
    assert {n.name: n.spec for n in done.nodes} == plan(done).nodes


@settings(max_examples=100, deadline=None)
@given(small_services, small_services, small_nodes, small_nodes)
def test_any_change_settles(services, later, nodes, later_nodes):
    before = settled(world(services, nodes), plan)
    old = {n.name: n for n in before.nodes}
    moved = [
        replace(n, spec=old[n.name].spec, status=old[n.name].status) if n.name in old else n
        for n in later_nodes
    ]
    after = settled(replace(before, services=tuple(later), nodes=tuple(moved)), plan)
    check_invariants(after, plan(after))


# ---- what agents measure, or do not ----------------------------------------------------------


def test_a_replaced_engine_that_is_still_reported_is_not_the_new_one():
    before = settled(world([CHAT], [node("n1")]), plan)
    moved = changed(CHAT, model=OTHER)
    both = carried_out(with_service(before, moved), plan(with_service(before, moved)))
    new = named(both, "n1")
    old_report = named(before, "n1").status.engines[0]
    engines = [old_report, *new.status.engines]
    reported = replace(new, status=new.status.model_copy(update={"engines": engines}))
    assert all(r.ready for r in plan(with_node(both, reported)).services[moved.uid].replicas)
    only_old = replace(new, status=new.status.model_copy(update={"engines": [old_report]}))
    replicas = plan(with_node(both, only_old)).services[moved.uid].replicas
    assert [r.ready for r in replicas] == [False]


@pytest.mark.parametrize(
    "figure",
    [
        {"iteration_micros": 90_000},
        {"iteration_micros": 90_000, "row_micros": 1000},
    ],
    ids=["no cost per row", "BE's part unknown"],
)
def test_what_is_not_measured_refuses_nobody(figure):
    before = settled(world([CHAT, BATCH], [node("n1")]), plan)
    second = service("second")
    busy = figures(named(before, "n1"), "cuda:0", **figure)
    assert places(plan(with_service(with_node(before, busy), second)), second)


def test_weights_that_are_known_must_fit_the_device():
    chat = service("chat", replicas=2)
    first = settled(world([chat], [node("n1")]), plan)
    measured = figures(named(first, "n1"), "cuda:0", weights_bytes=16 * GIB)
    small, large = node("n2"), node("n3")
    for_small = [DeviceReport(id="cuda:0", memory_bytes=8 * GIB)]
    for_large = [DeviceReport(id="cuda:0", memory_bytes=80 * GIB)]
    small = replace(small, status=small.status.model_copy(update={"devices": for_small}))
    large = replace(large, status=large.status.model_copy(update={"devices": for_large}))
    refused = plan(with_node(with_node(first, measured), small))
    assert "n2/cuda:0: the weights take 16384 MiB, the device has 8192 MiB" in (
        scheduled(refused, chat).message
    )
    result = plan(replace(first, nodes=(measured, small, large)))
    assert places(result, chat) == [("n1", "cuda:0"), ("n3", "cuda:0")]
    assert result.nodes["n3"].engines[0].weights_bytes == 16 * GIB
