"""Cores divided on machines of several NUMA nodes and of several hardware threads per core."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniserve_agent.node.cores import CoreWishes, divide, usable_cores
from omniserve_agent.node.errors import NodeError
from omniserve_agent.node.topology import Topology


def sockets(count, cores, threads=1):
    """Core numbers as Linux gives them: first threads of all sockets, then second ones."""
    each = count * cores
    nodes = {thread: thread % each // cores for thread in range(each * threads)}
    return Topology(nodes, {thread: thread % each for thread in nodes}, count)


def division(topology, engines=1, cuda=False, near=(), usable=None, **wishes):
    return divide(
        usable or sorted(topology.nodes),
        engines,
        cuda=cuda,
        wishes=CoreWishes(**wishes),
        topology=topology,
        near=near,
    )


def nodes(topology, cores):
    return {topology.node(core) for core in cores}


@pytest.mark.parametrize("near", [(0, 1), (1, 0)])
def test_each_engine_lies_on_its_gpus_node(near):
    topology = sockets(2, 16)
    plan = division(topology, 2, cuda=True, near=near)
    for engine, home in zip(plan.engines, near, strict=True):
        assert nodes(topology, (*engine.device, *engine.host)) == {home}
        assert engine.host_nodes == (home,)
    assert [len(engine.host) for engine in plan.engines] == [14, 14]
    assert len(plan.http) == 2


def test_two_gpus_of_one_node_leave_one_engine_the_other():
    """Each within a node: rather a GPU across the link than half of what its workers read."""
    topology = sockets(2, 16)
    plan = division(topology, 2, cuda=True, near=(1, 1))
    assert [engine.host_nodes for engine in plan.engines] == [(1,), (0,)]


def test_an_unknown_gpu_takes_what_a_known_one_leaves():
    plan = division(sockets(2, 16), 2, cuda=True, near=(None, 0))
    assert [engine.host_nodes for engine in plan.engines] == [(1,), (0,)]


def test_one_engine_on_two_sockets_reads_from_both_with_its_gpus_thread_beside_the_gpu():
    topology = sockets(2, 16)
    (engine,) = division(topology, cuda=True, near=(1,)).engines
    assert nodes(topology, engine.device) == {1}
    assert (len(engine.host), engine.host_nodes) == (29, (0, 1))


def test_halves_of_a_cpu_engine_have_a_node_each():
    topology = sockets(2, 16)
    plan = division(topology)
    (engine,) = plan.engines
    assert nodes(topology, engine.device) == {0}
    assert nodes(topology, engine.host) == {1}
    assert engine.host_nodes == (1,)
    assert len(plan.http) == 2


def test_an_engine_that_must_spread_takes_what_whole_ones_leave():
    topology = sockets(2, 16)
    plan = division(topology, 3, cuda=True, near=(0, 1, 0))
    assert [engine.host_nodes for engine in plan.engines[:2]] == [(0,), (1,)]
    assert nodes(topology, plan.engines[2].device) == {0}


def test_one_thread_per_core():
    topology = sockets(1, 8, threads=2)
    plan = division(topology, cuda=True)
    (engine,) = plan.engines
    assert (engine.device, engine.host) == ((0,), (1, 2, 3, 4, 5))
    assert plan.http == (6, 7, 14, 15)  # both threads of its cores


def test_http_has_the_second_threads_of_host_cores_where_no_core_is_left_for_it():
    plan = division(sockets(1, 2, threads=2))
    (engine,) = plan.engines
    assert (engine.device, engine.host, plan.http) == ((0,), (1,), (3,))
    assert not engine.host_batch_priority


def test_one_core_of_two_threads_is_as_good_as_two():
    plan = division(sockets(1, 1, threads=2))
    (engine,) = plan.engines
    assert (engine.device, engine.host, plan.http) == ((0,), (1,), (1,))
    assert plan.warnings == ()


def test_named_second_threads_are_used():
    """And nothing else runs on their cores unless it must."""
    plan = division(sockets(1, 8, threads=2), host=(4, 5, 6, 7, 12, 13, 14, 15))
    (engine,) = plan.engines
    assert engine.host == (4, 5, 6, 7, 12, 13, 14, 15)
    assert set(engine.device) | set(plan.http) <= {0, 1, 2, 3, 8, 9, 10, 11}


def test_named_cores_stay_and_draw_the_others():
    topology = sockets(2, 8)
    plan = division(topology, device=(12, 13))
    (engine,) = plan.engines
    assert engine.device == (12, 13)
    (engine,) = division(topology, host=(8, 9, 10)).engines
    assert (engine.host, engine.host_nodes) == ((8, 9, 10), (1,))


def test_named_host_cores_leave_the_device_beside_its_gpu():
    topology = sockets(2, 8)
    (engine,) = division(topology, cuda=True, near=(1,), host=(0, 1, 2, 3, 4, 5)).engines
    assert (engine.host, engine.host_nodes) == ((0, 1, 2, 3, 4, 5), (0,))
    assert nodes(topology, engine.device) == {1}


def test_a_mask_within_one_node_of_two_keeps_memory_there():
    """As the kubelet's single-numa-node policy gives it."""
    topology = Topology(dict.fromkeys(range(8, 16), 1), {}, 2)
    (engine,) = division(topology, cuda=True, near=(1,)).engines
    assert engine.host_nodes == (1,)


MACHINES = st.builds(sockets, st.integers(1, 4), st.integers(1, 12), st.integers(1, 2))


@given(MACHINES, st.integers(1, 6), st.booleans(), st.data())
def test_divisions_are_disjoint_and_as_large_as_without_nodes(topology, engines, cuda, data):
    near = [data.draw(st.none() | st.integers(0, 4)) for _ in range(engines)]
    flat = Topology({}, topology.firsts)
    try:
        expected = division(flat, engines, cuda, usable=sorted(topology.nodes))
    except NodeError:
        with pytest.raises(NodeError):
            division(topology, engines, cuda, near)
        return
    plan = division(topology, engines, cuda, near)
    assert [(len(e.device), len(e.host)) for e in plan.engines] == [
        (len(e.device), len(e.host)) for e in expected.engines
    ]
    assert len(plan.http) == len(expected.http)
    taken = [core for e in plan.engines for core in (*e.device, *e.host)]
    if not plan.warnings:
        assert len(set(taken)) == len(taken)
        hosts = {core for e in plan.engines for core in e.host}
        crowded = plan.engines[0].host_batch_priority
        assert set(taken) & set(plan.http) == (hosts if crowded else set())
    assert set(taken) | set(plan.http) <= set(topology.nodes)


@given(MACHINES, st.integers(1, 4))
def test_what_fits_a_node_is_not_spread(topology, engines):
    """Room for every engine on its GPU's node: each gets it."""
    near = [engine % topology.node_count for engine in range(engines)]
    try:
        plan = division(topology, engines, True, near)
    except NodeError:
        return
    firsts = set(topology.firsts.values())
    room = {node: len(cores) for node, cores in topology.by_node(firsts).items()}
    needs = [len(engine.device) + len(engine.host) for engine in plan.engines]
    for home, need in zip(near, needs, strict=True):
        room[home] -= need
    if plan.warnings or min(room.values()) < 0 or topology.node_count < 2:
        return
    if not {core for e in plan.engines for core in (*e.device, *e.host)} <= firsts:
        return  # second threads had to be used
    for engine, home in zip(plan.engines, near, strict=True):
        assert nodes(topology, (*engine.device, *engine.host)) == {home}


@pytest.mark.parametrize(
    ("quota", "near", "usable"),
    [
        (None, (), tuple(range(16))),
        (3, (), (0, 1, 2)),
        (3, (1,), (4, 5, 6)),
        (3, (None, 1), (4, 5, 6)),
        (4, (1, 0, 1), (0, 1, 4, 5)),
        (6, (1,), (0, 1, 4, 5, 6, 7)),  # cores of the other node before second threads of this one
        (10, (1,), (0, 1, 2, 3, 4, 5, 6, 7, 12, 13)),
        (99, (1,), tuple(range(16))),
    ],
)
def test_a_quota_pays_cores_beside_the_gpus(quota, near, usable):
    topology = sockets(2, 4, threads=2)
    assert usable_cores(range(16), quota, topology, near) == usable
