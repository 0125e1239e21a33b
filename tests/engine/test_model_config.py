"""What a model directory may say, and how it is refused otherwise."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from omniserve_agent.engine.model.config import ModelConfig
from omniserve_agent.engine.model.errors import ModelError
from support.tiny_models import LLAMA3_ROPE, SHAPES, TINY_MODELS, YARN_ROPE


@pytest.fixture
def write_config(tmp_path):
    """`write_config(family, **fields)` -> a directory with that config.json."""

    def write(family="llama", generation=None, **fields):
        config = {
            "model_type": family,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 128,
            "max_position_embeddings": 256,
            **fields,
        }
        (tmp_path / "config.json").write_text(json.dumps(config))
        if generation is not None:
            (tmp_path / "generation_config.json").write_text(json.dumps(generation))
        return tmp_path

    return write


@pytest.mark.parametrize("name", TINY_MODELS)
def test_shapes_are_read(name, tiny_model_dir):
    family, q_heads, kv_heads, head_size, hidden_size, options = SHAPES[name]
    config = ModelConfig.from_directory(tiny_model_dir(name))
    assert (config.family, config.layers) == (family, 3)
    assert (config.q_heads, config.kv_heads) == (q_heads, kv_heads)
    assert (config.head_size, config.hidden_size) == (head_size, hidden_size)
    assert config.tied_head == options.get("tie_word_embeddings", False)
    assert config.qk_norm == (family == "qwen3")
    assert config.qkv_bias == (family == "qwen2" or options.get("attention_bias", False))
    assert config.eos_token_ids == ()
    assert config.torch_dtype == torch.float32


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default", "rope_theta": 5000.0},
        {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
        LLAMA3_ROPE,
        YARN_ROPE,
        {**YARN_ROPE, "attention_factor": 0.5},
    ],
    ids=lambda rope: rope["rope_type"],
)
def test_rope_equals_transformers(rope, write_config):
    directory = write_config(rope_parameters=rope)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(directory))
    reference = model.model.rotary_emb
    config = ModelConfig.from_directory(directory)
    assert torch.equal(torch.tensor(config.rope.inv_freq), reference.inv_freq)
    assert config.rope.attention_factor == pytest.approx(reference.attention_scaling)


def test_old_rope_fields_are_understood(write_config):
    old = ModelConfig.from_directory(
        write_config(
            rope_theta=10000.0,
            rope_scaling={key: v for key, v in LLAMA3_ROPE.items() if key != "rope_theta"},
        )
    )
    new = ModelConfig.from_directory(write_config(rope_parameters=LLAMA3_ROPE))
    assert old.rope == new.rope


@pytest.mark.parametrize(
    ("family", "fields", "max_position", "window"),
    [
        ("mistral", {"sliding_window": 100}, 100, 100),
        ("mistral", {"sliding_window": None}, 256, None),
        ("mistral", {}, 256, None),  # transformers' default of 4096 exceeds the context
        ("qwen2", {"sliding_window": 100}, 256, None),
        (
            "qwen2",
            {"sliding_window": 100, "use_sliding_window": True, "max_window_layers": 1},
            100,
            100,
        ),
        (
            "qwen2",
            {"sliding_window": 100, "use_sliding_window": True, "max_window_layers": 2},
            256,
            None,
        ),
    ],
)
def test_an_active_window_caps_the_length(family, fields, max_position, window, write_config):
    config = ModelConfig.from_directory(write_config(family, **fields))
    assert (config.max_position, config.sliding_window) == (max_position, window)


@pytest.mark.parametrize(
    ("own", "generation", "expected"),
    [
        (2, {"eos_token_id": [5, 3]}, (2, 3, 5)),
        ([7, 2], None, (2, 7)),
        (None, {"eos_token_id": 4}, (4,)),
        (None, {}, ()),
    ],
)
def test_eos_ids_of_both_files(own, generation, expected, write_config):
    config = ModelConfig.from_directory(write_config(generation=generation, eos_token_id=own))
    assert config.eos_token_ids == expected


@pytest.mark.parametrize(
    ("family", "fields", "message"),
    [
        ("gpt2", {}, "'gpt2' is not supported; use one of llama, mistral, qwen2, qwen3"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ("llama", {"quantization_config": {"quant_method": "awq"}}, r"\(awq\) are not supported"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "rope_type 'dynamic' is not supported; use one of default, linear, llama3, yarn",
        ),
        (
            "llama",
            {
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 1e4,
                    "partial_rotary_factor": 0.5,
                }
            },
            "partial_rotary_factor 0.5",
        ),
        ("qwen3", {"num_attention_heads": 3}, "3 query heads cannot share 2 kv heads"),
        ("llama", {"hidden_size": "big"}, "cannot be used"),
    ],
)
def test_unsupported_configurations_are_refused(family, fields, message, write_config):
    with pytest.raises(ModelError, match=message):
        ModelConfig.from_directory(write_config(family, **fields))


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(ModelError, match=r"config.json does not exist"):
        ModelConfig.from_directory(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config.json cannot be read as JSON"):
        ModelConfig.from_directory(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ModelError, match=r"holds list; it must hold an object"):
        ModelConfig.from_directory(tmp_path)


def test_unknown_dtype_of_the_checkpoint_is_refused(write_config):
    config = ModelConfig.from_directory(write_config(dtype="float64"))
    with pytest.raises(ModelError, match="dtype 'float64' is not supported"):
        _ = config.torch_dtype
