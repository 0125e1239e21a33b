"""Layer-major prefill: who draws from the pool, and how far it gets."""

import pytest

from omniserve_agent.engine.execution.iteration import SampleRow, StagedPrefill
from omniserve_agent.engine.execution.staged import StagedRunner
from omniserve_agent.engine.messages import SamplingParams
from omniserve_agent.engine.model.weights import load_model
from omniserve_agent.scheduling.latency import Work, pairs
from support.tiny_models import TINY_MODELS


class NoAttention:
    """Attention whose output is its query: only the bookkeeping is looked at."""

    def __init__(self):
        self.finished = []

    def attend(self, layer, staged, qkv):
        return qkv[0].contiguous()

    def finish_layer(self, layer, staged):
        self.finished.append((staged.handle, layer))


@pytest.fixture(name="runner")
def make_runner(tiny_model_dir):
    return StagedRunner(load_model(tiny_model_dir(TINY_MODELS[0])), NoAttention())


def prefill(handle, rows, layer=0, start=0):
    sample = SampleRow(handle, SamplingParams(), 0)
    return StagedPrefill(handle, handle, start, [5] * rows, sample, layer=layer)


def one_pass(runner, prefills, pool, work):
    for layer in range(len(runner.model.layers)):
        pool = runner.advance(layer, prefills, pool, work)
    return pool


def test_a_pass_gets_as_far_as_the_pool(runner):
    staged, work = prefill(1, rows=10, start=3), Work()
    assert one_pass(runner, [staged], 14, work) == 0
    assert (staged.layer, staged.row) == (1, 4)
    assert runner.attention.finished == [(1, 0)]
    assert work.chunk_rows == [10, 4]
    assert work.staged_pairs == pairs(3, 10) + pairs(3, 4)
    assert one_pass(runner, [staged], 100, work) == 100 - 16
    assert staged.layer == len(runner.model.layers)


def test_a_lower_rank_at_an_earlier_layer_does_not_take_what_the_first_needs(runner):
    first, second = prefill(1, rows=10, layer=1), prefill(2, rows=10)
    left = 2 * 10  # of the first, at the layers 1 and 2
    one_pass(runner, [first, second], left + 4, Work())
    assert first.layer == len(runner.model.layers)
    assert (second.layer, second.row) == (0, 4)
