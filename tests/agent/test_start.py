"""Starts that are refused, each with one line and exit code 2, and two models on shared cores."""

import os

import pytest

pytestmark = pytest.mark.real_model

CORES_WANTED = 2


@pytest.fixture(scope="module")
def two_cores():
    cores = sorted(os.sched_getaffinity(0))[:CORES_WANTED]
    if len(cores) < CORES_WANTED:
        pytest.skip(f"needs {CORES_WANTED} cores, this machine lends {len(cores)}")
    return set(cores)


@pytest.fixture(scope="module")
def two_models(write_manifest, documents):
    """The same weights with two limits are two engines."""
    make, slo = documents["make"], documents["chat"]["spec"]["slo"]
    return write_manifest(make("long", "LS", 2048, **slo), make("short", "BE", 1024))


def test_an_slo_on_a_batch_service(refused, write_manifest, documents):
    line = refused(write_manifest(documents["make"]("batch", "BE", ttftMs=1, tpotMs=1)))
    assert "default/batch: spec.slo: forbidden for class BE" in line


def test_an_unknown_field(refused, write_manifest, documents):
    document = documents["make"]("batch", "BE")
    document["spec"]["modle"] = {}
    line = refused(write_manifest(document))
    assert "default/batch" in line
    assert "spec.modle" in line


def test_a_missing_file(refused, tmp_path):
    assert str(tmp_path / "none.yaml") in refused(tmp_path / "none.yaml")


def test_a_bad_flag(refused, write_manifest, documents):
    line = refused(write_manifest(documents["batch"]), flags=["--host-kv", "4G"])
    assert "--host-kv" in line
    assert "'4G'" in line
    assert "4Gi" in line


def test_two_models_need_more_than_two_cores(refused, two_models, two_cores):
    line = refused(two_models, cores=two_cores)
    assert "2 engines (one per distinct spec.model) need 4 cores" in line
    assert "2 cores (" in line
    assert "--share-cores" in line


def test_or_they_share_cores_and_promise_nothing(running_agent, two_models, two_cores):
    with running_agent(two_models, "--share-cores", cores=two_cores) as agent:
        warnings = [event for event in agent.events() if "SLOs are not promised" in event]
        assert len(warnings) == 1
        assert len(agent.engine_processes()) == 2
        for model in ("long", "short"):
            assert agent.complete("Hello", model, max_tokens=3).usage.completion_tokens == 3
        models = {model.id: model.max_model_len for model in agent.openai.models.list().data}
        assert models == {"long": 2048, "short": 1024}
