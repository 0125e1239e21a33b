"""Cores and host KV in words."""

import pytest

from omniserve_agent.engine.messages import EngineConfig, HostMemory
from omniserve_agent.node.locality import cores_line, memory_line

MIB = 1 << 20


@pytest.mark.parametrize(
    ("nodes", "line"),
    [
        ([], "device cores 0, host 1-3,8"),
        ([1], "device cores 0, host 1-3,8, host KV on NUMA node 1"),
        ([0, 1], "device cores 0, host 1-3,8, host KV on NUMA nodes 0-1"),
    ],
)
def test_cores(nodes, line):
    cores = {"device_cores": [0], "host_cores": [1, 2, 3, 8]}
    assert cores_line(EngineConfig(model_dir="m", host_nodes=nodes, **cores)) == line


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({}, "host KV 9 MiB, on huge pages 8 MiB"),
        ({"huge_page_bytes": None}, "host KV 9 MiB, on huge pages unknown"),
        (
            {"policy": "preferred", "numa_nodes": [1]},
            "host KV 9 MiB, on huge pages 8 MiB, preferred on NUMA node 1",
        ),
        (
            {"numa_nodes": [0, 1], "refused": "EPERM"},
            "host KV 9 MiB, on huge pages 8 MiB, where workers touched it first: "
            "mbind was refused (EPERM)",
        ),
    ],
)
def test_memory(fields, line):
    known = {"bytes": 9 * MIB, "huge_page_bytes": 8 * MIB, "policy": "first_touch"}
    assert memory_line(HostMemory(**(known | {"numa_nodes": []} | fields))) == line
