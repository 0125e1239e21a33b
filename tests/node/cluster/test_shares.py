"""The node divided: devices, cores, host KV."""

from dataclasses import replace

import pytest

from omniserve_agent.node.capacity import Capacity
from omniserve_agent.node.cluster.shares import FoundDevice, share_out
from omniserve_agent.node.errors import NodeError
from omniserve_agent.node.topology import Topology
from omniserve_agent.settings import Settings

GIB, MIB = 1 << 30, 1 << 20
GPUS = [FoundDevice(f"cuda:{n}", "a GPU", 80 * GIB, 79 * GIB) for n in range(2)]


def settings(**fields):
    return Settings(files=(), **fields)


def capacity(cores=16, gib=64, limited=True):
    return Capacity(tuple(range(cores)), gib * GIB, limited, "a CPU")


def test_a_cpu_node_offers_one_device():
    shares = share_out(settings(), [], capacity(4, 16))
    assert [device.id for device in shares.devices] == ["cpu"]
    assert shares.room.host_cores == 1
    assert shares.device("cpu").kind == "a CPU"
    assert shares.device("cpu").memory_bytes + shares.host_kv_bytes < 16 * GIB


def test_gpus_share_the_host_cores():
    shares = share_out(settings(), GPUS, capacity())
    assert shares.room.devices == ("cuda:0", "cuda:1")
    assert shares.room.host_cores == 12  # 16, less two layer loops and two for HTTP
    first = shares.cores("cuda:0", 4, ())
    second = shares.cores("cuda:1", 8, first.host)
    assert len(first.host) == 4
    assert len(second.host) == 8
    assert not set(first.host) & set(second.host)
    assert not {*first.device, *second.device} & set(shares.host_cores)
    assert not set(shares.division.http) & set(shares.host_cores)


def test_an_engine_gets_its_devices_own_host_cores_first():
    shares = share_out(settings(), GPUS, capacity())
    assert set(shares.cores("cuda:1", 6, ()).host) == set(shares.division.engines[1].host)


def test_cores_beyond_the_devices_own_come_from_its_numa_node():
    topology = Topology({core: core // 32 for core in range(64)}, {}, 2)
    gpus = [FoundDevice(f"cuda:{n}", "a GPU", GIB, GIB, numa_node=n // 2) for n in range(4)]
    shares = share_out(settings(), gpus, replace(capacity(64), topology=topology))
    assert [part.host_nodes for part in shares.division.engines] == [(0,), (0,), (1,), (1,)]
    cores = shares.cores("cuda:2", 20, ())  # 14 of them its own
    assert set(topology.by_node(cores.host)) == {1}
    assert cores.host_nodes == (1,)


def test_more_host_cores_than_are_free_is_an_error():
    shares = share_out(settings(), GPUS, capacity())
    with pytest.raises(NodeError, match="13 host cores are assigned and 12 are free"):
        shares.cores("cuda:0", 13, ())


@pytest.mark.parametrize(
    ("gpus", "limited", "fields", "least_mib", "most_mib"),
    [
        (GPUS, True, {}, 50 * 1024, 60 * 1024),  # most of what the processes leave
        ([], True, {}, 28 * 1024, 32 * 1024),  # weights need the other half
        ([], False, {}, 2048, 2048),  # the machine's memory is others' as well
        ([], False, {"host_kv_bytes": 96 * MIB + 1}, 96, 96),
    ],
)
def test_host_kv(gpus, limited, fields, least_mib, most_mib):
    shares = share_out(settings(**fields), gpus, capacity(limited=limited))
    assert least_mib * MIB <= shares.host_kv_bytes <= most_mib * MIB


def test_more_host_kv_than_there_is_memory_is_refused_with_figures():
    with pytest.raises(NodeError, match=r"--host-kv: 65536 MiB wanted and 6[0-9]{4} MiB of 65536"):
        share_out(settings(host_kv_bytes=64 * GIB), [], capacity())


def test_too_little_memory_for_the_processes_is_refused():
    with pytest.raises(NodeError, match="--host-kv: 0 MiB wanted and 0 MiB of 1024 MiB"):
        share_out(settings(), [], capacity(gib=1))
