"""The device waits for the host: exact, and a token per iteration for every offloaded row."""

import pytest

from omniserve_agent.engine.messages import ServiceClass
from omniserve_agent.scheduling.latency import Curve, LatencyModel
from omniserve_agent.scheduling.synchronous_offload import SynchronousOffload
from support.fake_engine import submit
from support.real_engine import check_same, engine_for, generate
from support.tiny_models import TINY_MODELS

LS, BE = ServiceClass.LS, ServiceClass.BE
TOKENS = 10


@pytest.mark.parametrize("attention", ["native", "torch"])
def test_a_waiting_device_gives_the_same_tokens(attention, tiny_model_dir, reference_generate):
    model_dir = tiny_model_dir(TINY_MODELS[0])
    prompts = {"LS": [5, 6, 7, 8] * 5, "BE": [9, 8, 7] * 9}
    wanted = {name: reference_generate(model_dir, p, TOKENS) for name, p in prompts.items()}
    with engine_for(model_dir, be_device_residency=False, attention=attention) as engine:
        model = LatencyModel(engine.layers, Curve((1,), (1e-3,)), Curve((1,), (1e-3,)))
        caps = engine.policy.caps
        engine.policy = SynchronousOffload(caps, model, host_bytes_per_s=1e12, kv_bytes=1.0)
        requests = [submit(n, p, n, max_tokens=TOKENS) for n, p in prompts.items()]
        got = generate(engine, requests)
        for name, (expected, gaps) in wanted.items():
            check_same(name, got[name], expected, gaps)
        figures = engine.executor.figures()
        assert figures.joins == figures.same_iteration_joins == (TOKENS - 1) * engine.layers
