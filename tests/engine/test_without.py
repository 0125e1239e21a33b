"""What an engine can go without, for experiments."""

import pytest

from omniserve_agent.engine.configuration import problem
from omniserve_agent.engine.messages import SWITCHABLE, EngineConfig
from support.fake_engine import submit
from support.real_engine import check_same, engine_for, generate
from support.tiny_models import TINY_MODELS

TOKENS = 8


def test_an_unknown_feature_is_named():
    assert problem(EngineConfig(model_dir="x", without=[*SWITCHABLE])) is None
    line = problem(EngineConfig(model_dir="x", without=["sleep"]))
    assert line is not None
    assert "'sleep'" in line
    assert "error-budget" in line


def test_the_policy_is_told(tiny_model_dir):
    model_dir, settings = tiny_model_dir(TINY_MODELS[0]), {"policy": "omniserve"}
    with engine_for(model_dir, **settings) as engine:
        caps, budget = engine.policy.caps, engine.policy.error_budget
        assert (caps.sweeps, caps.be_host_admissions, budget.enabled) == (True, True, True)
    with engine_for(model_dir, without=[*SWITCHABLE], **settings) as engine:
        caps, budget = engine.policy.caps, engine.policy.error_budget
        assert (caps.sweeps, caps.be_host_admissions, budget.enabled) == (False, False, False)


@pytest.mark.parametrize("attention", ["native", "torch"])
def test_no_hop_joins_in_the_iteration_that_submitted_it(
    attention, tiny_model_dir, reference_generate
):
    model_dir = tiny_model_dir(TINY_MODELS[0])
    prompts = {"LS": [5, 6, 7, 8] * 5, "BE": [9, 8, 7] * 9}
    wanted = {name: reference_generate(model_dir, p, TOKENS) for name, p in prompts.items()}
    features = ["sweeps", "same-iteration-joins"]
    settings = {"be_device_residency": False, "attention": attention, "without": features}
    with engine_for(model_dir, **settings) as engine:
        got = generate(engine, [submit(n, p, n, max_tokens=TOKENS) for n, p in prompts.items()])
        for name, (expected, gaps) in wanted.items():
            check_same(name, got[name], expected, gaps)
        figures = engine.executor.figures()
        assert figures.joins == (TOKENS - 1) * engine.layers
        assert figures.same_iteration_joins == 0
