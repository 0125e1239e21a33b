"""int8 host KV: BE's alone. LS stays exact, whatever happens to it."""

import pytest

from omniserve_agent.engine.build import build_engine
from omniserve_agent.engine.errors import EngineSetupError
from omniserve_agent.engine.messages import EngineConfig, ServiceClass
from omniserve_agent.scheduling.jobs import Stage
from omniserve_native import DType
from support.fake_engine import (
    Collector,
    check_consistent,
    check_no_leak,
    make_engine,
    run,
    submit,
)
from support.fake_executor import continuation
from support.real_engine import check_same, engine_for, generate
from support.tiny_models import TINY_MODELS

BE = ServiceClass.BE
TOKENS = 12
PATHS = [
    pytest.param({"attention": "native"}, id="native"),
    pytest.param({"attention": "torch"}, id="torch"),
]


def prompts(count):
    return [
        [(7 * i + 13 * j + i * j) % 199 + 3 for j in range(n)] for i, n in enumerate((16, 33, 70))
    ][:count]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", TINY_MODELS)
def test_ls_is_exact_beside_int8_be(name, path, tiny_model_dir, reference_generate):
    model_dir = tiny_model_dir(name)
    asked = prompts(3)
    with engine_for(model_dir, be_device_residency=False, kv_cache_dtype="int8", **path) as engine:
        assert engine.residency.host.store.arena.config.dtype is DType.I8
        got = generate(
            engine,
            [
                submit(f"{cls}{i}", prompt, cls, max_tokens=TOKENS)
                for i, prompt in enumerate(asked)
                for cls in ("LS", "BE")
            ],
        )
        for i, prompt in enumerate(asked):
            check_same(f"LS{i}", got[f"LS{i}"], *reference_generate(model_dir, prompt, TOKENS))
            assert len(got[f"BE{i}"]) == TOKENS
        assert engine.executor.figures().host_rows == 3 * (TOKENS - 1) * engine.layers


@pytest.mark.parametrize("path", PATHS)
def test_moves_with_conversion_keep_to_the_same_tokens(path, tiny_model_dir):
    """There and back again: quantising what was quantised changes nothing worth a token here."""
    model_dir = tiny_model_dir(TINY_MODELS[0])
    prompt = prompts(3)[2]
    with engine_for(model_dir, kv_cache_dtype="int8", **path) as engine:
        collector = Collector()
        engine.submit(submit("be", prompt, "BE", max_tokens=30))
        moves = 0
        while not engine.idle:
            collector.take(engine.step())
            be = engine.intake.find("be")
            if be is not None and be.job.stage is Stage.DECODE and not be.job.held:
                moves += engine.residency.demote(be)
            elif be is not None and be.job.stage is Stage.BOUNDARY and not be.job.held:
                moves += engine.residency.promote(be)
                assert be.rounded
        assert moves > 10
        assert len(collector.tokens["be"]) == 30


def ls_that_yields(exact_host):
    """Two LS requests that do not fit the device together."""
    engine = make_engine(device_blocks=8, ls_prefill_rows=32, exact_host=exact_host)
    collector = Collector()
    asked = {f"ls{i}": [i + 1] * 8 for i in range(2)}
    for name, prompt in asked.items():
        engine.submit(submit(name, prompt, max_tokens=20))
    while not engine.idle:
        check_consistent(engine)
        collector.take(engine.step())
    for name, prompt in asked.items():
        assert collector.tokens[name] == continuation(prompt, 20)
    check_no_leak(engine)
    return engine.residency.counts


def test_ls_is_recomputed_instead_of_swapped_to_an_inexact_host():
    exact, inexact = ls_that_yields(True), ls_that_yields(False)
    assert exact.swapped > 0
    assert inexact.swapped == 0
    assert inexact.recomputed > 0


@pytest.mark.parametrize("exact_host", [True, False])
def test_device_kv_that_came_back_rounded_is_shared_with_nobody(exact_host):
    engine = make_engine(device_blocks=30, exact_host=exact_host, be_device_residency=False)
    collector, prompt = Collector(), list(range(1, 14))
    engine.submit(submit("be", prompt, "BE", max_tokens=30))
    while "be" not in collector.tokens:
        collector.take(engine.step())
    be = engine.intake.find("be")
    while be.job.stage is not Stage.BOUNDARY:
        collector.take(engine.step())
    assert engine.residency.promote(be)
    for _ in range(5):
        collector.take(engine.step())
    engine.submit(submit("ls", prompt, max_tokens=3))
    run(engine, collector)
    hit = engine.residency.device.hit_tokens > 0
    assert hit is exact_host
    assert collector.tokens["ls"] == continuation(prompt, 3)


def test_an_unknown_kv_cache_dtype_is_named():
    with pytest.raises(EngineSetupError, match="kv_cache_dtype is 'fp8'; use auto, int8"):
        build_engine(EngineConfig(model_dir="none", kv_cache_dtype="fp8"), lambda *_: None)
