"""What torch, asked in a child process, tells of the GPUs."""

import asyncio
import json

import pytest

from omniserve_agent.node import devices
from omniserve_agent.node.devices import list_gpus, pick
from support.sysfs import machine


@pytest.fixture
def probed(monkeypatch, tmp_path):
    """The GPUs of a machine with two sockets, as a probe that prints these lines finds them."""

    def probe(*gpus):
        (tmp_path / "nvidia0").touch()
        monkeypatch.setattr(devices, "_PROBE", f"print({json.dumps(json.dumps(gpus))})")
        root = machine(tmp_path, {0: "0-3", 1: "4-7"}, gpus={"0000:c1:00.0": 1})
        return asyncio.run(list_gpus("cuda", tmp_path, root))

    return probe


def test_gpus_know_their_numa_node(probed):
    gpus = probed((8, 9, "a GPU", "0000:c1:00.0"), (7, 9, "a GPU", "0000:07:00.0"))
    assert [(gpu.free_bytes, gpu.numa_node) for gpu in gpus] == [(8, 1), (7, None)]
    assert [device.numa_node for device in pick("cuda", gpus, 2)] == [1, None]


def test_without_a_bus_id_the_node_is_not_known(probed):
    assert [gpu.numa_node for gpu in probed((8, 9, "a GPU", ""))] == [None]
