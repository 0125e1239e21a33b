"""Nodes, hardware threads and GPUs of machines made of files."""

import os

import pytest

from omniserve_agent.node.topology import FLAT, gpu_node, listed, read_topology
from support.sysfs import machine

TWO_SOCKETS = {0: "0-3,8-11", 1: "4-7,12-15"}
SIBLINGS = [f"{core},{core + 8}" for core in range(8)]


def test_two_sockets_with_two_threads_per_core(tmp_path):
    topology = read_topology(range(16), machine(tmp_path, TWO_SOCKETS, SIBLINGS))
    assert topology.by_node(range(16)) == {
        0: [0, 1, 2, 3, 8, 9, 10, 11],
        1: [4, 5, 6, 7, 12, 13, 14, 15],
    }
    assert [topology.first(core) for core in (0, 8, 7, 15)] == [0, 0, 7, 7]
    assert topology.node_count == 2


def test_only_usable_cores_count(tmp_path):
    """Where somebody else has the first thread of a physical core, its second one is the first."""
    topology = read_topology({5, 12, 13}, machine(tmp_path, TWO_SOCKETS, SIBLINGS))
    assert topology.by_node((5, 12, 13)) == {1: [5, 12, 13]}
    assert [topology.first(core) for core in (5, 12, 13)] == [5, 12, 5]
    assert topology.node_count == 2  # memory may still come from the other


def test_siblings_as_older_kernels_tell_them(tmp_path):
    root = machine(tmp_path, {0: "0-1"}, ["0,1"], siblings_file="thread_siblings_list")
    assert read_topology((0, 1), root).first(1) == 0


def test_without_sysfs_there_is_one_node_of_single_threads(tmp_path):
    topology = read_topology((3, 4), tmp_path)
    assert topology.by_node((3, 4)) == {0: [3, 4]}
    assert topology.first(4) == 4
    assert topology.memory_nodes((3, 4)) == ()


def test_this_machine_can_be_read():
    usable = os.sched_getaffinity(0)
    topology = read_topology(usable)
    assert {topology.first(core) for core in usable} <= usable
    held = topology.by_node(usable).values()
    assert sorted(core for cores in held for core in cores) == sorted(usable)


@pytest.mark.parametrize(
    ("cores", "nodes"),
    [
        ((0, 1, 2), (0,)),
        ((0, 1, 4, 5), (0, 1)),
        ((0, 1, 2, 4), (0,)),  # one of four would read what the other three have remote
        ((4, 5, 6, 7, 0, 1), (0, 1)),
        ((), ()),
    ],
)
def test_memory_lies_where_it_is_read_evenly(tmp_path, cores, nodes):
    topology = read_topology(range(16), machine(tmp_path, TWO_SOCKETS))
    assert topology.memory_nodes(cores) == nodes


def test_memory_without_cores_is_a_node_too(tmp_path):
    """As of CXL or HBM: what is read then keeps to the node that has the cores."""
    topology = read_topology((0, 1), machine(tmp_path, {0: "0-1", 1: ""}))
    assert topology.memory_nodes((0, 1)) == (0,)
    assert FLAT.memory_nodes((0, 1)) == ()


@pytest.mark.parametrize(
    ("pci", "node"),
    [("0000:C1:00.0", 1), ("0000:07:00.0", None), ("0000:08:00.0", None), ("", None)],
)
def test_node_of_a_gpu(tmp_path, pci, node):
    root = machine(tmp_path, TWO_SOCKETS, gpus={"0000:c1:00.0": 1, "0000:07:00.0": -1})
    assert gpu_node(pci, root) == node


@pytest.mark.parametrize(
    ("cores", "text"), [((), ""), ((3,), "3"), ((2, 0, 1, 8, 10, 11), "0-2,8,10-11")]
)
def test_listed(cores, text):
    assert listed(cores) == text
