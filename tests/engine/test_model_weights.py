"""Checkpoints: sharded ones load alike, incomplete and foreign ones are refused by name."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from omniserve_agent.engine.model.errors import ModelError
from omniserve_agent.engine.model.weights import load_model
from support.tiny_models import forward

NAME = "qwen3-group5-head96"


@pytest.fixture
def copied(tiny_model_dir, tmp_path):
    """A private copy of one tiny model, and its tensors."""
    directory = tmp_path / "model"
    shutil.copytree(tiny_model_dir(NAME), directory)
    return directory, load_file(directory / "model.safetensors")


def write(directory, tensors):
    save_file(tensors, directory / "model.safetensors")


def split_into_two(directory, tensors):
    (directory / "model.safetensors").unlink()
    names = sorted(tensors)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for shard, part in halves.items():
        save_file({name: tensors[name] for name in part}, directory / shard)
    weight_map = {name: shard for shard, part in halves.items() for name in part}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_shards_load_like_one_file(copied):
    directory, tensors = copied
    expected = forward(load_model(directory), [1, 2, 3])
    split_into_two(directory, tensors)
    assert torch.equal(forward(load_model(directory), [1, 2, 3]), expected)


def test_missing_tensors_are_named(copied):
    directory, tensors = copied
    del tensors["model.layers.1.mlp.up_proj.weight"]
    write(directory, tensors)
    with pytest.raises(ModelError, match=r"lacks tensor model.layers.1.mlp.up_proj.weight$"):
        load_model(directory)


def test_many_missing_tensors_are_counted(copied):
    directory, _ = copied
    write(directory, {"model.norm.weight": torch.ones(80)})
    with pytest.raises(ModelError, match=r"lacks tensors lm_head.weight, .* and 27 more"):
        load_model(directory)


def test_unexpected_tensors_are_named(copied):
    directory, tensors = copied
    tensors["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(960)
    write(directory, tensors)
    with pytest.raises(ModelError, match=r"holds tensor model.layers.0.self_attn.q_proj.bias"):
        load_model(directory)


def test_wrong_shapes_are_named(copied):
    directory, tensors = copied
    tensors["model.norm.weight"] = torch.ones(81)
    write(directory, tensors)
    with pytest.raises(ModelError, match=r"model.norm.weight has shape \[81\].* asks for \[80\]"):
        load_model(directory)


def test_left_over_tensors_are_passed_over(copied):
    directory, tensors = copied
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(48)
    write(directory, tensors)
    assert load_model(directory).config.layers == 3


def test_unreadable_files_are_named(copied):
    directory, _ = copied
    (directory / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(ModelError, match=r"model.safetensors is not a readable safetensors file"):
        load_model(directory)
    (directory / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"neither model.safetensors nor model.safetensors.index"):
        load_model(directory)


@pytest.mark.parametrize("shard", ["../secret.safetensors", "/etc/passwd", "absent.safetensors"])
def test_an_index_cannot_name_files_elsewhere(copied, shard):
    directory, _ = copied
    (directory / "model.safetensors").rename(directory.parent / "secret.safetensors")
    index = {"weight_map": {"model.norm.weight": shard}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="is not a file beside it"):
        load_model(directory)


def test_pickled_weights_are_not_looked_at(copied):
    directory, _ = copied
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    with pytest.raises(ModelError, match="neither"):
        load_model(directory)


def test_dtype_without_a_word_in_the_config_is_the_checkpoints(copied):
    directory, tensors = copied
    config = json.loads((directory / "config.json").read_text())
    for key in ("dtype", "torch_dtype"):
        config.pop(key, None)
    (directory / "config.json").write_text(json.dumps(config))
    write(directory, {name: tensor.half() for name, tensor in tensors.items()})
    assert load_model(directory).dtype == torch.float16


def test_unknown_dtype_is_refused(copied):
    with pytest.raises(ModelError, match="dtype 'int8' is not supported; use one of float32"):
        load_model(copied[0], dtype="int8")
