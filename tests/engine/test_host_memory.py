"""What an engine tells of its host KV once it has touched it."""

import pytest

from omniserve_agent.engine.build import build_engine
from omniserve_agent.engine.messages import EngineConfig
from support.tiny_models import TINY_MODELS

SIZES = {"device_kv_bytes": 8 << 20, "host_kv_bytes": 32 << 20}


def host_memory(model_dir, nodes):
    config = EngineConfig(model_dir=str(model_dir), dtype="float32", host_nodes=nodes, **SIZES)
    engine, ready = build_engine(config, lambda *_: None)
    engine.close()
    return ready.host_memory


@pytest.mark.parametrize("nodes", [[], [0], [1023]])
def test_ready_tells_where_host_kv_lies(tiny_model_dir, nodes):
    memory = host_memory(tiny_model_dir(TINY_MODELS[0]), nodes)
    assert memory.numa_nodes == nodes
    assert 31 << 20 < memory.bytes <= 32 << 20
    assert 0 <= memory.huge_page_bytes <= memory.bytes
    if nodes == [0] and memory.refused not in ("EPERM", "ENOSYS"):
        assert (memory.policy, memory.refused) == ("preferred", "")
    else:  # a node that is not there is no reason not to serve
        assert memory.policy == "first_touch"
        assert bool(memory.refused) == bool(nodes)
