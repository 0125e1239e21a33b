"""Preparation in a child process."""

import json
import os
import sys
from pathlib import Path

import pytest

from omniserve_agent.node.errors import NodeError
from omniserve_agent.node.model_store import ModelStore, model_bytes

COMMAND = (sys.executable, str(Path(__file__).with_name("fake_prepare.py")))


def store(**fields):
    return ModelStore(Path("/cache"), command=COMMAND, **fields)


def test_steps_and_the_directory_come_back(run):
    steps = []
    path = run(store().prepare("file:///dir/models/m", lambda *step: steps.append(step)))
    assert path == Path("/models/m")
    assert steps == [("reading", 0.5)]


def test_limits_are_passed_on(run):
    limited = store(allowed_packages=("a", "b"), model_roots=(Path("/m"),))
    words = str(run(limited.prepare("file:///arguments", lambda *_: None)))
    assert words.endswith(
        "/arguments --cache-dir /cache --allow-package a --allow-package b --model-root /m"
    )


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("refuse", "model file:///refuse: no such file; name one that exists"),
        ("crash", "exited with code 1: BoomError: out of luck"),
        ("nothing", "exited with code 0: no message"),
    ],
)
def test_failures_are_one_line(run, kind, message):
    with pytest.raises(NodeError, match=message):
        run(store().prepare(f"file:///{kind}", lambda *_: None))


def test_a_hanging_preparation_ends_at_the_time_out(run):
    with pytest.raises(NodeError, match=r"not ready after 0\.1 s"):
        run(store(timeout_s=0.1).prepare("file:///sleep", lambda *_: None))
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        assert file.read() == ""


@pytest.mark.parametrize(
    ("config", "dtype", "factor"),
    [
        ({"dtype": "bfloat16"}, "auto", 1),
        ({"dtype": "bfloat16"}, "float32", 2),
        ({"torch_dtype": "float32"}, "bfloat16", 0.5),
        ({}, "float32", 1),
    ],
)
def test_model_bytes(tmp_path, config, dtype, factor):
    (tmp_path / "config.json").write_text(json.dumps(config))
    for name in ("a", "b"):
        (tmp_path / f"{name}.safetensors").write_bytes(bytes(500))
    assert model_bytes(tmp_path, dtype) == 1000 * factor


def test_a_token_goes_into_the_environment_and_not_into_the_arguments(run, tmp_path):
    program = tmp_path / "prepare.py"
    program.write_text(
        "import json, os, sys\n"
        "token = os.environ.get('HF_TOKEN')\n"
        "print(json.dumps({'model_dir': f'{token} {token in sys.argv} ' + os.environ['HF_HOME']}))"
    )
    store = ModelStore(tmp_path, hub=True, command=(sys.executable, str(program)))
    words = str(run(store.prepare("hf://org/name", lambda *_: None, "secret")))
    token, is_argument, home = words.split()
    assert (token, is_argument) == ("secret", "False")
    assert home == os.environ.get("HF_HOME", str(tmp_path / "huggingface"))
