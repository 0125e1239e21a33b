"""Prompt lookup: what it guesses, how it learns, and that it changes no output."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniserve_agent.engine.messages import SamplingParams
from omniserve_agent.engine.prompt_lookup import PROBE_HOPS, PromptLookup
from omniserve_agent.scheduling.ceiling import BeFlow, ceilings
from omniserve_agent.scheduling.draft_length import ROW_COST
from support.fake_engine import submit
from support.real_engine import engine_for, generate
from support.tiny_models import TINY_MODELS


def test_the_longest_match_is_followed():
    # [1, 2] was followed by 9 first and by 3 later; after [7, 1, 2] only 9 came.
    tokens = [7, 1, 2, 9, 4, 8, 1, 2, 3, 5, 7, 1, 2]
    assert PromptLookup().propose(1, tokens, 4)[:1] == [9]
    assert PromptLookup().propose(1, [*tokens[1:9], 6, 1, 2], 4)[:1] == [3]
    assert PromptLookup().propose(1, [1, 2, 3, 4], 4) == []
    assert PromptLookup().propose(1, [5], 4) == []


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(1, 7))
def test_the_index_grows_as_tokens_come(tokens, longest):
    """Asking after every token gives what asking once gives."""
    often = PromptLookup()
    for end in range(1, len(tokens) + 1):
        answer = often.propose(1, tokens[:end], longest)
    assert answer == PromptLookup().propose(1, tokens, longest)
    assert len(answer) <= longest


def test_a_request_that_is_never_guessed_right_is_only_probed():
    lookup, tokens = PromptLookup(), [1, 2] * 20
    made = 0
    for _ in range(4 * PROBE_HOPS):
        guess = lookup.propose(1, tokens, 7)
        made += len(guess) > 0
        if guess:
            lookup.judged(1, len(guess), 0)
    assert made <= 30
    assert lookup.propose(2, tokens, 7)  # another request starts afresh


def test_dense_rows_binding_means_no_guess():
    lookup = PromptLookup()
    lookup.binds("dense_rows")
    assert lookup.propose(1, [1, 2] * 9, 7) == []
    lookup.binds("iterations")
    assert lookup.propose(1, [1, 2] * 9, 7)


def test_every_ceiling_has_a_row_cost():
    flow = BeFlow(1, 1, 1, 2, 0.1, 0, 1, 1, 1, 0.5, 1, 1, True)
    assert set(ROW_COST) == {"none", "device", *ceilings(flow)}


def test_what_is_forgotten_is_gone():
    lookup = PromptLookup()
    lookup.propose(1, [1, 2] * 9, 7)
    lookup.forget(1)
    lookup.forget(1)
    assert not lookup._tracks


def repetitive(seed):
    dice = random.Random(seed)
    phrase = [dice.randrange(3, 200) for _ in range(6)]
    return (phrase * 8)[: 30 + seed]


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_output_is_the_same_with_and_without(temperature, tiny_model_dir):
    """Greedy and sampled: the token at a place depends on its seed and place alone."""
    model_dir, answers = tiny_model_dir(TINY_MODELS[0]), []
    sampling = SamplingParams(temperature=temperature, seed=5, top_k=2)
    asked = [
        submit(f"be{i}", repetitive(i), "BE", max_tokens=60, sampling=sampling) for i in range(4)
    ]
    for source in ("off", "prompt_lookup"):
        with engine_for(model_dir, drafts_source=source, be_device_residency=False) as engine:
            answers.append(generate(engine, asked))
            proposed = engine.counts.accepted_drafts + engine.counts.rejected_drafts
            assert (proposed > 0) == (source == "prompt_lookup")
            assert not getattr(engine.drafts, "_tracks", None)
    assert answers[0] == answers[1]
