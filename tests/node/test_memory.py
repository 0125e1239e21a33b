"""Tables of memory decisions."""

import pytest

from omniserve_agent.node.errors import NodeError
from omniserve_agent.node.memory import GIB, MIB, EngineDemand, EngineMemory, allot


def test_defaults_follow_the_memory():
    demand = EngineDemand("engine0", model_bytes=300 * MIB)
    assert allot(24 * GIB, [demand]) == (EngineMemory(256 * MIB, 2 * GIB),)
    assert allot(5 * GIB, [demand]) == (EngineMemory(256 * MIB, GIB),)
    assert allot(4 * GIB, [demand] * 2)[0].host_kv_bytes == 4 * GIB // 10 // MIB * MIB


def test_wishes_are_kept():
    demand = EngineDemand("engine0", 0, device_kv_bytes=GIB, host_kv_bytes=3 * GIB)
    assert allot(8 * GIB, [demand]) == (EngineMemory(GIB, 3 * GIB),)


def test_what_does_not_fit_is_refused_with_figures():
    demand = EngineDemand("engine0", model_bytes=500 * MIB, host_kv_bytes=4 * GIB)
    with pytest.raises(NodeError) as refused:
        allot(4 * GIB, [demand])
    for figure in ("5952 MiB wanted", "4096 MiB there", "host KV 4096", "model 500", "--host-kv"):
        assert figure in str(refused.value)


def test_it_fits_to_the_last_mib():
    rest = (400 + 700 + 256 + 500) * MIB
    demand = EngineDemand("engine0", model_bytes=500 * MIB, host_kv_bytes=GIB)
    allot(rest + GIB, [demand])
    with pytest.raises(NodeError):
        allot(rest + GIB - 1, [demand])


def test_a_gpu_keeps_model_and_device_kv_off_the_host():
    demand = EngineDemand("engine0", model_bytes=16 * GIB, cuda_free_bytes=80 * GIB)
    (size,) = allot(8 * GIB, [demand])
    assert size.device_kv_bytes == (80 - 16 - 2) * GIB * 9 // 10 // MIB * MIB


@pytest.mark.parametrize("device_kv", [None, 40 * GIB])
def test_a_gpu_too_small_is_refused_with_figures(device_kv):
    free = 17 * GIB if device_kv is None else 40 * GIB
    demand = EngineDemand("e", 16 * GIB, cuda_free_bytes=free, device_kv_bytes=device_kv)
    with pytest.raises(NodeError, match=f"{free // MIB} MiB free, the model takes 16384 MiB"):
        allot(64 * GIB, [demand])
