"""Our dense modules against transformers', family by family."""

import pytest
import torch
from transformers import AutoTokenizer

from omniserve_agent.engine.model.config import ModelConfig
from omniserve_agent.engine.model.linear import make_linear
from omniserve_agent.engine.model.random_weights import random_model
from omniserve_agent.engine.model.weights import load_model
from support.tiny_models import MAX_POSITION, TINY_MODELS, VOCAB_SIZE, forward

# bfloat16 has 8 bits: after three layers the logits of these models (standard deviation about 1)
# may differ by this share of their largest magnitude, wherever each side rounds.
BF16_TOLERANCE = 0.04


def tokens(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCAB_SIZE, (count,), generator=generator).tolist()


def reference_logits(model, token_ids):
    with torch.inference_mode():
        return model(torch.tensor([token_ids])).logits[0].float()


@pytest.mark.parametrize("name", TINY_MODELS)
def test_float32_logits_equal_transformers(name, tiny_model_dir, reference_model):
    directory, token_ids = tiny_model_dir(name), tokens(200)
    model = load_model(directory)
    assert model.dtype == torch.float32
    expected = reference_logits(reference_model(directory), token_ids)
    torch.testing.assert_close(forward(model, token_ids), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", TINY_MODELS)
def test_bfloat16_logits_are_near_transformers(name, tiny_model_dir, reference_model):
    directory, token_ids = tiny_model_dir(name), tokens(60)
    model = load_model(directory, dtype="bfloat16")
    expected = reference_logits(reference_model(directory, torch.bfloat16), token_ids)
    error = (forward(model, token_ids) - expected).abs().max() / expected.abs().max()
    assert error < BF16_TOLERANCE


@pytest.mark.parametrize("name", TINY_MODELS)
def test_greedy_tokens_equal_generate(name, tiny_model_dir, reference_generate):
    directory, prompt = tiny_model_dir(name), tokens(9, seed=3)
    expected, gaps = reference_generate(directory, prompt, 12)
    model, sequence = load_model(directory), list(prompt)
    for _ in expected:
        sequence.append(int(forward(model, sequence)[-1].argmax()))
    assert min(gaps) > 1e-4, "the prompt meets a near tie; choose another seed"
    assert sequence[len(prompt) :] == expected
    assert len(set(expected)) > 2, "a constant answer would prove nothing"


def test_rows_do_not_depend_on_their_neighbours(tiny_model_dir):
    model = load_model(tiny_model_dir("qwen3-group5-head96"))
    with torch.inference_mode():
        x = model.embed(torch.tensor(tokens(8)))
        rope = model.rope(torch.tensor([5, 0, 9, 1, 7, 7, 3, 2]))
        together = model.layers[0].pre_attention(x, rope)
        alone = model.layers[0].pre_attention(x[2:3], rope[2:3])
    for many, one in zip(together, alone, strict=True):
        torch.testing.assert_close(many[2:3], one, atol=1e-5, rtol=1e-5)


def test_attention_rows_have_contiguous_elements(tiny_model_dir):
    model = load_model(tiny_model_dir("llama-group3-head64-tied"))
    with torch.inference_mode():
        x = model.embed(torch.tensor(tokens(4)))
        q, k, v = model.layers[0].pre_attention(x, model.rope(torch.arange(4)))
    assert [part.shape for part in (q, k, v)] == [(4, 384), (4, 128), (4, 128)]
    assert all(part.stride(1) == 1 for part in (q, k, v))


def test_post_attention_writes_the_residual_in_place(tiny_model_dir):
    model = load_model(tiny_model_dir("llama-group3-head64-tied"))
    with torch.inference_mode():
        buffer = torch.zeros(6, 96)
        buffer[:3] = model.embed(torch.tensor(tokens(3)))
        before = buffer.clone()
        model.layers[0].post_attention(torch.ones(3, 384), buffer[:3])
    assert not torch.equal(buffer[:3], before[:3])
    assert torch.equal(buffer[3:], before[3:])


@pytest.mark.parametrize("rows", [1, 3, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("biased", [False, True])
def test_linear_agrees_with_the_product(rows, dtype, biased):
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(24, 40, generator=generator).to(dtype)
    bias = torch.randn(24, generator=generator).to(dtype) if biased else None
    x = torch.randn(rows, 40, generator=generator).to(dtype)
    expected = x.double() @ weight.double().T + (bias.double() if biased else 0.0)
    found = make_linear(weight, bias, "cpu")(x)
    assert found.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    torch.testing.assert_close(found.double(), expected, atol=tolerance * 20, rtol=tolerance)


def test_rope_table_is_bounded_by_the_wanted_length(tiny_model_dir):
    directory = tiny_model_dir("llama-group3-head64-tied")
    assert load_model(directory, max_positions=32).positions == 32
    assert load_model(directory).positions == MAX_POSITION
    with pytest.raises(ValueError, match=r"513 tokens .* 1 to 512"):
        load_model(directory, max_positions=513)


def test_loading_reports_progress(tiny_model_dir):
    seen = []
    load_model(
        tiny_model_dir("llama-group3-head64-tied"),
        progress=lambda stage, fraction: seen.append((stage, round(fraction, 2))),
    )
    assert seen == [("loading weights", share) for share in (0.33, 0.67, 1.0)]


def test_random_model_repeats_by_seed(tiny_model_dir):
    config = ModelConfig.from_directory(tiny_model_dir("qwen2-group7-head64-tied"))
    first, again, other = (
        forward(random_model(config, torch.float32, seed=seed), tokens(5)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.real_model
def test_smollm2_knows_the_capital_of_france(smollm2_dir):
    tokenizer = AutoTokenizer.from_pretrained(smollm2_dir, local_files_only=True)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    sequence = tokenizer(text, add_special_tokens=False).input_ids
    model, prompt_tokens = load_model(smollm2_dir), len(sequence)
    assert model.dtype == torch.bfloat16
    while sequence[-1] not in model.config.eos_token_ids or len(sequence) == prompt_tokens:
        sequence.append(int(forward(model, sequence)[-1].argmax()))
        assert len(sequence) < prompt_tokens + 20, tokenizer.decode(sequence[prompt_tokens:])
    answer = tokenizer.decode(sequence[prompt_tokens:], skip_special_tokens=True)
    assert answer == "The capital of France is Paris."
