"""The sampler against a naive one, and its promise that rows do not feel each other."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from omniserve_agent.engine.messages import SamplingParams, TokenLogprob
from omniserve_agent.engine.sampling import Sampler, check_params
from omniserve_agent.engine.sampling.selection import (
    Filters,
    block_size,
    cut_offs,
    draw,
    first_maximum,
    largest,
)
from omniserve_agent.engine.sampling.uniforms import Uniforms


@dataclass
class Row:
    params: SamplingParams
    output_index: int = 0
    prompt: list[int] | tuple = ()
    output: list[int] | tuple = ()
    handle: int = 0


def random_logits(rows, vocab, seed=0, spread=3.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, vocab, generator=generator) * spread


def sample(logits, *rows):
    return Sampler().sample(logits, rows).token_ids.tolist()


# ---- greedy ---------------------------------------------------------------------------------


@pytest.mark.parametrize("vocab", [1, 7, 16, 256, 48 * 1024, 151_665])
def test_first_maximum_is_argmax(vocab):
    logits = random_logits(3, vocab)
    assert torch.equal(first_maximum(logits), logits.argmax(-1))


@pytest.mark.parametrize("vocab", [5, 300, 4096, 4097])
@pytest.mark.parametrize("count", [1, 3, 5])
def test_largest_are_those_of_a_sort(vocab, count):
    logits = random_logits(3, vocab)
    values, indices = largest(logits, count)
    assert torch.equal(values, logits.sort(-1, descending=True).values[:, :count])
    assert torch.equal(logits.gather(1, indices), values)


def test_ties_go_to_the_first_token():
    logits = torch.zeros(1, 1024)
    logits[0, [300, 700, 1023]] = 5.0
    assert sample(logits, Row(SamplingParams(temperature=0.0))) == [300]


@pytest.mark.parametrize(("vocab", "size"), [(49_152, 256), (128_256, 256), (32_000, 256)])
def test_blocks_divide_usual_vocabularies(vocab, size):
    assert block_size(vocab) == size


def test_logits_are_left_as_they_are():
    logits = random_logits(2, 64)
    before = logits.clone()
    sample(
        logits,
        Row(SamplingParams(logit_bias={3: 5.0}, top_k=4)),
        Row(SamplingParams(repetition_penalty=2.0), prompt=[1]),
    )
    assert torch.equal(logits, before)


def test_no_rows_give_no_tokens():
    assert sample(torch.empty(0, 32)) == []


def test_rows_and_logits_must_match():
    with pytest.raises(ValueError, match="2 rows of logits for 1 rows to sample"):
        sample(torch.zeros(2, 8), Row(SamplingParams()))


# ---- what the filters keep ------------------------------------------------------------------


def naive_support(logits, params):
    """Token ids that may be drawn, by sorting everything in float64; and how clear that is."""
    scaled = np.asarray(logits, dtype=np.float64) / params.temperature
    weights = np.exp(scaled - scaled.max())
    kept, margins = np.ones(len(weights), bool), [1.0]
    if params.top_k:
        last, following = np.append(-np.sort(-weights), 0.0)[[params.top_k - 1, params.top_k]]
        kept &= weights >= last
        margins.append((last - following) / last if last > 1e-30 else 0.0)
    if params.top_p < 1:
        left = np.where(kept, weights, 0.0) / weights[kept].sum()
        order = np.argsort(-left, kind="stable")
        before = np.concatenate(([0.0], np.cumsum(left[order])[:-1]))
        margins.append(np.abs(before - params.top_p).min())
        kept &= left >= left[order[before < params.top_p]].min()
    if params.min_p:
        margins.append(np.abs(weights[weights < 1] - params.min_p).min())
        kept &= weights >= params.min_p
    return set(np.flatnonzero(kept)), min(margins)


filters = st.fixed_dictionaries(
    {
        "temperature": st.floats(0.2, 3.0),
        "top_k": st.sampled_from([0, 0, 1, 2, 5, 40, 299]),
        "top_p": st.sampled_from([1.0, 1.0, 0.05, 0.5, 0.9, 0.999]),
        "min_p": st.sampled_from([0.0, 0.0, 0.02, 0.3, 1.0]),
    }
)


@settings(max_examples=80, deadline=None)
@given(rows=st.lists(filters, min_size=1, max_size=4), seed=st.integers(0, 10_000))
def test_support_is_that_of_a_naive_sampler(rows, seed):
    params = [SamplingParams(**row) for row in rows]
    logits = random_logits(len(rows), 300, seed)
    temperature = torch.tensor([[p.temperature] for p in params])
    probabilities = (logits / temperature).softmax(-1)
    limits = cut_offs(probabilities, filters_of(params), candidates=(4, 32))
    for i, p in enumerate(params):
        expected, margin = naive_support(logits[i], p)
        if margin > 1e-5:
            assert set(torch.nonzero(probabilities[i] >= limits[i])[:, 0].tolist()) == expected


def filters_of(params):
    return Filters(
        top_k=torch.tensor([[p.top_k] for p in params]),
        top_p=torch.tensor([[p.top_p] for p in params], dtype=torch.float64),
        min_p=torch.tensor([[p.min_p] for p in params]),
    )


@pytest.mark.parametrize("options", [{"top_k": 3}, {"top_p": 0.3}, {"min_p": 0.4}])
def test_only_the_support_is_drawn_and_all_of_it(options):
    logits, params = random_logits(1, 64, spread=1.0), SamplingParams(**options, seed=4)
    expected, _ = naive_support(logits[0], params)
    drawn = set(sample(logits.expand(400, -1), *(Row(params, index) for index in range(400))))
    assert drawn == expected


def test_tied_tokens_are_kept_together():
    logits = torch.tensor([[2.0, 1.0, 1.0, 1.0, 0.0]])
    for params in (SamplingParams(top_k=2), SamplingParams(top_p=0.5)):
        limit = cut_offs(logits.softmax(-1), filters_of([params]), candidates=(2,))
        assert (logits.softmax(-1) >= limit).tolist() == [[True, True, True, True, False]]


# ---- drawing --------------------------------------------------------------------------------


@pytest.mark.parametrize("vocab", [5, 64, 512, 4096])
def test_draw_inverts_the_distribution(vocab):
    weights = random_logits(1, vocab).exp()
    cumulated = (weights[0].double().cumsum(0) / weights.sum(dtype=torch.float64)).numpy()
    for wanted in np.linspace(0.0, 0.999999, 201):
        token = draw(weights, torch.tensor([wanted], dtype=torch.float64)).item()
        low = cumulated[token - 1] if token else 0.0
        assert low - 1e-6 <= wanted <= cumulated[token] + 1e-6  # blocks are summed in float32


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000),
    uniform=st.one_of(st.sampled_from([0.0, 1.0 - 2.0**-53]), st.floats(0, 1, exclude_max=True)),
    kept=st.sets(st.integers(0, 511), min_size=1, max_size=3),
)
def test_weightless_tokens_are_never_drawn(seed, uniform, kept):
    weights = torch.zeros(1, 512)
    index = torch.tensor(sorted(kept))
    weights[0, index] = torch.rand(len(kept), generator=torch.Generator().manual_seed(seed)) + 1e-6
    assert draw(weights, torch.tensor([uniform], dtype=torch.float64)).item() in kept


def test_frequencies_follow_the_distribution():
    """Chi-square of 20,000 draws with a fixed seed: 31 degrees of freedom, limit at 0.1 %."""
    logits, draws = random_logits(1, 32, spread=1.0), 20_000
    params = SamplingParams(temperature=0.7, seed=11)
    found = sample(logits.expand(draws, -1), *(Row(params, index) for index in range(draws)))
    expected = (logits[0].double() / 0.7).softmax(-1).numpy() * draws
    counts = np.bincount(found, minlength=32)
    assert ((counts - expected) ** 2 / expected).sum() < 61.1


def test_uniforms_are_uniform_and_keyed():
    numbers = Uniforms()
    first = [numbers.number(3, k) for k in range(1000)]
    assert first == [Uniforms().number(3, k) for k in range(1000)]
    assert all(0.0 <= value < 1.0 for value in first)
    assert abs(np.mean(first) - 0.5) < 0.03
    assert len(set(first)) == 1000
    for seed in (4, -3, 2**63, 2**80):
        assert numbers.number(seed, 0) != first[0]


def test_uniforms_are_the_same_on_every_machine():
    """Replays across versions rely on it."""
    numbers = [round(Uniforms().number(7, position), 9) for position in (0, 63, 64)]
    assert numbers == [0.872073455, 0.519718329, 0.873450301]


anything = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 0.3, 1.0]),
        "top_k": st.sampled_from([0, 3, 150]),
        "top_p": st.sampled_from([1.0, 0.6]),
        "min_p": st.sampled_from([0.0, 0.1]),
        "frequency_penalty": st.sampled_from([0.0, 1.5]),
        "repetition_penalty": st.sampled_from([1.0, 1.3]),
        "logit_bias": st.sampled_from([{}, {5: 4.0}]),
        "logprobs": st.sampled_from([None, 2]),
        "seed": st.integers(0, 5),
    }
)


@settings(max_examples=40, deadline=None)
@given(options=st.lists(anything, min_size=2, max_size=5), seed=st.integers(0, 1000))
def test_a_row_chooses_alike_alone_and_in_any_batch(options, seed):
    logits = random_logits(len(options), 512, seed)
    rows = [
        Row(SamplingParams(**o), output_index=3, prompt=[1, 2], output=[5, 5, 9], handle=i)
        for i, o in enumerate(options)
    ]
    together = Sampler().sample(logits, rows)
    for i, row in enumerate(rows):
        alone = Sampler().sample(logits[i : i + 1], [row])
        assert alone.token_ids.tolist() == together.token_ids[i : i + 1].tolist()
        one, many = alone.logprobs()[0], together.logprobs()[i]
        assert (one is None) == (many is None)
        assert one is None or one.chosen == pytest.approx(many.chosen)


def test_a_kept_batch_gives_fresh_numbers():
    sampler, logits = Sampler(), torch.zeros(1, 1024)
    row = Row(SamplingParams(seed=2))
    found = []
    for index in range(20):
        row.output_index = index
        found += sampler.sample(logits, [row]).token_ids.tolist()
    assert len(set(found)) > 15
    assert found == [sample(logits, Row(SamplingParams(seed=2), i))[0] for i in range(20)]


def test_equal_parameters_of_other_requests_are_not_confused():
    sampler, logits = Sampler(), random_logits(1, 64)
    for _ in range(200):  # parameter objects come and go, and their addresses with them
        for bias in ({3: 100.0}, {9: 100.0}):
            row = Row(SamplingParams(temperature=0.0, logit_bias=bias))
            assert sampler.sample(logits, [row]).token_ids.tolist() == list(bias)


# ---- penalties, bias, log probabilities -----------------------------------------------------


def naive_penalties(logits, params, prompt, output):
    scores = [value + params.logit_bias.get(i, 0.0) for i, value in enumerate(logits.tolist())]
    for token in set(prompt) | set(output):
        repetition = params.repetition_penalty
        scores[token] *= repetition if scores[token] <= 0 else 1 / repetition
        count = output.count(token)
        scores[token] -= params.frequency_penalty * count + params.presence_penalty * (count > 0)
    return scores


tokens = st.lists(st.integers(0, 11), max_size=12)


@settings(max_examples=80, deadline=None)
@given(
    histories=st.lists(st.tuples(tokens, tokens), min_size=1, max_size=3),
    frequency=st.floats(-2, 2),
    presence=st.floats(-2, 2),
    repetition=st.floats(0.5, 2),
    bias=st.dictionaries(st.integers(0, 11), st.floats(-3, 3), max_size=3),
    seed=st.integers(0, 1000),
)
def test_penalties_equal_the_formula(histories, frequency, presence, repetition, bias, seed):
    params = SamplingParams(
        temperature=0.0,
        frequency_penalty=frequency,
        presence_penalty=presence,
        repetition_penalty=repetition,
        logit_bias=bias,
    )
    logits = random_logits(len(histories), 12, seed)
    rows = [
        Row(params, len(output), prompt, output, handle)
        for handle, (prompt, output) in enumerate(histories)
    ]
    for i, token in enumerate(sample(logits, *rows)):
        scores = naive_penalties(logits[i], params, *histories[i])
        assert scores[token] == pytest.approx(max(scores), abs=1e-4)


def test_a_growing_output_is_counted_step_by_step():
    """The same list, longer at every step, as the engine hands it over."""
    sampler, logits = Sampler(), torch.zeros(1, 6)
    row = Row(SamplingParams(temperature=0.0, presence_penalty=1.0), prompt=[1], output=[])
    for expected in range(6):
        row.output_index = expected
        assert sampler.sample(logits, [row]).token_ids.tolist() == [expected]
        row.output.append(expected)


def test_another_request_under_the_same_handle_starts_afresh():
    sampler, logits = Sampler(), torch.zeros(1, 4)
    params = SamplingParams(temperature=0.0, presence_penalty=1.0)
    assert sampler.sample(logits, [Row(params, 1, [3], [0])]).token_ids.tolist() == [1]
    assert sampler.sample(logits, [Row(params, 1, [3], [1])]).token_ids.tolist() == [0]


def test_penalties_need_the_output_so_far():
    row = Row(SamplingParams(presence_penalty=1.0), output_index=3, output=[1, 2], handle=8)
    with pytest.raises(ValueError, match=r"request 8: .* need 3 known output tokens, 2 were given"):
        sample(torch.zeros(1, 4), row)


def test_a_large_bias_decides_and_a_ban_excludes():
    logits = random_logits(2, 32)
    best = int(logits[1].argmax())
    chosen = sample(
        logits,
        Row(SamplingParams(logit_bias={17: 100.0})),
        Row(SamplingParams(temperature=0.0, logit_bias={best: -100.0})),
    )
    assert chosen[0] == 17
    assert chosen[1] != best


def test_logprobs_are_of_the_raw_logits():
    logits = random_logits(3, 128)
    rows = [
        Row(SamplingParams(temperature=0.5, seed=1, logprobs=3, logit_bias={7: 100.0})),
        Row(SamplingParams(temperature=0.0)),
        Row(SamplingParams(temperature=0.0, logprobs=0)),
    ]
    result = Sampler().sample(logits, rows)
    ids, found = result.token_ids.tolist(), result.logprobs()
    expected = logits.double().log_softmax(-1)
    assert ids[0] == 7
    assert found[1] is None
    assert found[2].top == []
    for row in (0, 2):
        assert found[row].chosen.token_id == ids[row]
        assert found[row].chosen.logprob == pytest.approx(expected[row, ids[row]].item(), abs=1e-5)
    best = expected[0].topk(3)
    assert [entry.token_id for entry in found[0].top] == best.indices.tolist()
    assert [entry.logprob for entry in found[0].top] == pytest.approx(best.values.tolist())
    assert isinstance(found[0].top[0], TokenLogprob)


# ---- checks ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, "temperature is -0.1; it must lie between 0.0 and 100.0"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"min_p": -1.0}, "min_p is -1.0"),
        ({"top_k": -1}, r"top_k is -1; it must be 0 \(off\) or more"),
        ({"presence_penalty": 3.0}, "presence_penalty is 3.0"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0"),
        ({"logprobs": 21}, "logprobs is 21; it must lie between 0 and 20"),
        ({"logit_bias": {100: 1.0}}, "logit_bias names token 100; ids are 0 to 99"),
        ({"logit_bias": {-1: 1.0}}, "logit_bias names token -1"),
        ({"logit_bias": {1: math.inf}}, "logit_bias of token 1 is inf"),
    ],
)
def test_parameters_that_cannot_be_honoured_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        check_params(SamplingParams(**options), vocab_size=100)


def test_usual_parameters_pass():
    check_params(SamplingParams(), vocab_size=100)
    check_params(SamplingParams(temperature=0.0, top_p=0.0, logprobs=20), vocab_size=100)
