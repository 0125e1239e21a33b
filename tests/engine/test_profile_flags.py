"""`omniserve-agent profile` shows the profile of the server that has the same flags."""

import asyncio
import json
import os

import pytest
import torch

from omniserve_agent import cli
from omniserve_agent.engine import build
from omniserve_agent.node import profile as node
from omniserve_agent.node.assignments import assign
from omniserve_agent.node.capacity import read_capacity
from omniserve_agent.node.devices import Device
from omniserve_agent.node.errors import NodeError
from omniserve_agent.node.model_store import ModelStore, model_bytes
from omniserve_agent.node.plan import PreparedEngine, plan_node, wanted_dtype
from omniserve_crds.manifests import load_manifests
from support.tiny_models import TINY_MODELS

CORE = str(min(os.sched_getaffinity(0)))
FLAGS = (
    *("--device", "cpu", "--dtype", "float32", "--drafts", "prompt_lookup"),
    *("--device-cores", CORE, "--host-cores", CORE, "--share-cores"),
    *("--device-kv", "32Mi", "--host-kv", "32Mi", "--slots", "16", "--max-device-rows", "24"),
    *("--join-lanes", "4", "--ls-prefill-rows", "24", "--be-prefill-rows", "12"),
    *("--without", "sweeps"),
)


@pytest.fixture(autouse=True)
def _same_cores_afterwards():
    """An engine pins the thread that builds it."""
    cores, threads = os.sched_getaffinity(0), torch.get_num_threads()
    yield
    os.sched_setaffinity(0, cores)
    torch.set_num_threads(threads)


@pytest.fixture
def model_dir(tiny_model_dir, monkeypatch):
    """Where every model lies."""
    directory = tiny_model_dir(TINY_MODELS[0])

    async def prepared(*_):
        return directory

    monkeypatch.setattr(ModelStore, "prepare", prepared)
    return directory


@pytest.fixture
def of_a_server(model_dir, monkeypatch, tmp_path):
    """`of_a_server(**model)`: what the engine of a server with FLAGS is told."""

    def told(**model):
        spec = {"class": "BE", "model": {"uri": f"file://{model_dir}", **model}}
        manifest = {"apiVersion": "omniserve.io/v1alpha1", "kind": "LLMService", "spec": spec}
        path = tmp_path / "services.yaml"
        path.write_text(json.dumps(manifest | {"metadata": {"name": "batch"}}))
        seen = []
        monkeypatch.setattr(cli, "_run", seen.append)
        assert cli.main(["serve", "-f", str(path), "--cache-dir", str(tmp_path), *FLAGS]) == 0
        (settings,) = seen
        (wanted,) = assign(load_manifests(settings.files))
        size = model_bytes(model_dir, wanted_dtype(settings, wanted))
        engine = PreparedEngine(wanted, model_dir, size, Device("cpu"))
        return plan_node(settings, [engine], read_capacity()).configs[0]

    return told


@pytest.fixture
def of_profile(model_dir, monkeypatch, tmp_path):
    """`of_profile(*flags)`: what `profile` with FLAGS and these tells the engine it measures."""

    def told(*flags):
        seen = []

        async def profile(settings, key, *_, **__):
            seen.append((settings, key))
            raise NodeError("nothing is measured here")

        monkeypatch.setattr(node, "profile", profile)
        assert (
            cli.main(
                ["profile", f"file://{model_dir}", "--cache-dir", str(tmp_path), *FLAGS, *flags]
            )
            == 2
        )
        ((settings, key),) = seen
        return asyncio.run(node._engine_config(settings, key, lambda *_: None))

    return told


@pytest.mark.parametrize(
    ("model", "flags"),
    [
        ({}, ()),
        ({"kvCacheDtype": "int8"}, ("--kv-cache-dtype", "int8")),
        ({"maxModelLen": 200}, ("--max-model-len", "200")),
    ],
    ids=str,
)
def test_the_same_flags_make_the_same_engine(of_a_server, of_profile, model, flags):
    config = of_profile(*flags)
    assert config == of_a_server(**model)
    assert config.without == ["sweeps"]


def test_what_a_server_measured_is_found(of_a_server, of_profile, tmp_path, monkeypatch):
    engine, _ = build.build_engine(of_a_server(kvCacheDtype="int8"), lambda *_: None)
    known = engine.policy.model
    engine.close()
    assert len(list((tmp_path / "profiles").iterdir())) == 1
    monkeypatch.setattr(build, "profile", lambda *_: pytest.fail("measured again"))
    config = of_profile("--kv-cache-dtype", "int8")
    assert build.profiled(config, lambda *_: None, fresh=False).latency == known
