"""Every field, bound and rule of LLMService, and the words of its errors."""

import pytest
from pydantic import ValidationError

from omniserve_crds.conditions import CONDITIONS, ConditionType, Reason
from omniserve_crds.llmservice import (
    MODEL_RULES,
    RESOURCES_RULES,
    SPEC_RULES,
    Dtype,
    LLMService,
    ServiceClass,
)
from omniserve_crds.violations import violations

ABSENT = object()


def put(document, path, value):
    *parents, last = path.split(".")
    for part in parents:
        document = document.setdefault(part, {})
    if value is ABSENT:
        del document[last]
    else:
        document[last] = value


def first_violation(document):
    with pytest.raises(ValidationError) as caught:
        LLMService.model_validate(document)
    return violations(LLMService, caught.value)[0]


def test_defaults(chat):
    service = LLMService.model_validate(chat)
    assert service.key == "default/chat"
    assert service.served_name == "chat"
    assert service.spec.service_class is ServiceClass.LS
    assert service.spec.slo is not None
    assert (service.spec.slo.objective_percent, service.spec.slo.window_s) == (99, 300)
    assert service.spec.slo.min_samples == 20
    assert (service.spec.priority, service.spec.replicas, service.spec.resources.gpus) == (0, 1, 1)
    assert service.spec.placement.colocation == "Allowed"
    assert service.spec.state == "Running"
    assert service.spec.model.dtype is Dtype.AUTO
    assert service.spec.auth is None


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.model.servedName", "org/model:v1.2"),
        ("spec.model.revision", "refs/pr/3"),
        ("spec.model.dtype", "bfloat16"),
        ("spec.model.kvCacheDtype", "int8"),
        ("spec.model.maxModelLen", 16),
        ("spec.model.maxModelLen", 1_048_576),
        ("spec.model.credentialsSecretRef", {"name": "hub.token"}),
        ("spec.slo.objectivePercent", 99),
        ("spec.slo.window", "10s"),
        ("spec.slo.window", "1h"),
        ("spec.priority", -100),
        ("spec.priority", 100),
        ("spec.replicas", 0),
        ("spec.resources", {"gpus": 1}),
        ("spec.placement.nodeSelector", {"example.com/pool": "a"}),
        ("spec.placement.tolerations", [{"operator": "Exists"}]),
        ("spec.placement.tolerations", [{"key": "gpu", "value": "yes", "effect": "NoSchedule"}]),
        ("spec.placement.colocation", "Exclusive"),
        ("spec.auth", {"apiKeysSecretRef": {"name": "keys"}}),
        ("spec.state", "Paused"),
        ("metadata.labels", {"a": ""}),
        ("metadata.uid", "0f0f"),
        ("status", {"conditions": []}),
    ],
)
def test_accepted(chat, path, value):
    put(chat, path, value)
    LLMService.model_validate(chat)


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        ("spec.class", "XX", "spec.class: is 'XX'; write 'LS' or 'BE'"),
        ("spec.class", ABSENT, "spec.class: missing; required: LS or BE"),
        ("spec.slo", ABSENT, "spec.slo: missing for class LS; write slo.ttftMs and slo.tpotMs"),
        (
            "spec.slo.tpotMs",
            ABSENT,
            "spec.slo.tpotMs: missing; required: mean time per output token in milliseconds, "
            "an integer",
        ),
        ("spec.slo.ttftMs", 0, "spec.slo.ttftMs: is 0; the least is 1"),
        ("spec.slo.ttftMs", 3_600_001, "spec.slo.ttftMs: is 3600001; the most is 3600000"),
        ("spec.slo.ttftMs", "500", "spec.slo.ttftMs: is '500'; write an integer"),
        ("spec.slo.ttftMs", 500.0, "spec.slo.ttftMs: is 500.0; write an integer"),
        ("spec.slo.ttftMs", True, "spec.slo.ttftMs: is True; write an integer"),
        ("spec.slo.objectivePercent", 100, "spec.slo.objectivePercent: is 100; the most is 99"),
        ("spec.slo.window", "9s", "spec.slo.window: is '9s'; write a duration from 10s to 1h"),
        ("spec.slo.window", "61m", "spec.slo.window: is '61m'; write a duration from 10s to 1h"),
        (
            "spec.slo.window",
            "5 min",
            "spec.slo.window: is '5 min'; write a duration such as 30s, 5m or 1m30s",
        ),
        (
            "spec.slo.window",
            300,
            "spec.slo.window: is 300; write a string, in quotes if it looks like something else",
        ),
        ("spec.slo.minSamples", 0, "spec.slo.minSamples: is 0; the least is 1"),
        ("spec.priority", 101, "spec.priority: is 101; the most is 100"),
        ("spec.priority", -101, "spec.priority: is -101; the least is -100"),
        ("spec.replicas", -1, "spec.replicas: is -1; the least is 0"),
        (
            "spec.resources.gpus",
            2,
            "spec.resources.gpus: must be 1: tensor parallelism is not supported yet",
        ),
        (
            "spec.resources.minSharePercent",
            10,
            "spec.resources.minSharePercent: forbidden for class LS; remove it: "
            "LS is kept by its slo",
        ),
        (
            "spec.model.uri",
            "s3://bucket/x",
            "spec.model.uri: is 's3://bucket/x'; write hf://org/name, file:///path, "
            "pvc://NAME/path or python://package/resource",
        ),
        ("spec.model.dtype", "fp8", "spec.model.dtype: is 'fp8'; write 'auto', 'float32', "),
        ("spec.model.kvCacheDtype", "fp8", "spec.model.kvCacheDtype: is 'fp8'; write 'auto' or "),
        ("spec.model.maxModelLen", 15, "spec.model.maxModelLen: is 15; the least is 16"),
        (
            "spec.model.maxModelLen",
            1_048_577,
            "spec.model.maxModelLen: is 1048577; the most is 1048576",
        ),
        ("spec.model.servedName", "a b", "spec.model.servedName: is 'a b'; write letters, digits"),
        (
            "spec.model.revision",
            "-x",
            "spec.model.revision: is '-x'; write a branch, tag or commit",
        ),
        ("spec.model", None, "spec.model: is empty; write a mapping of fields"),
        ("spec.modle", {}, "spec.modle: unknown field; did you mean model?"),
        ("spec.slo.ttft_ms", 5, "spec.slo.ttft_ms: unknown field; did you mean ttftMs?"),
        ("spec.placement.colocation", "No", "spec.placement.colocation: is 'No'; write 'Allowed'"),
        (
            "spec.placement.tolerations",
            [{}],
            "spec.placement.tolerations[0].key: missing for operator Equal",
        ),
        (
            "spec.placement.tolerations",
            [{"key": "a", "operator": "Exists", "value": "b"}],
            "spec.placement.tolerations[0].value: forbidden for operator Exists",
        ),
        (
            "spec.placement.tolerations",
            [{"key": "a", "tolerationSeconds": 3}],
            "spec.placement.tolerations[0].tolerationSeconds: only for effect NoExecute",
        ),
        (
            "spec.placement.tolerations",
            [{"operator": "Exists"}] * 17,
            "spec.placement.tolerations: is [",
        ),
        (
            "spec.auth",
            {},
            "spec.auth.apiKeysSecretRef: missing; required: the Secret that holds the bearer keys",
        ),
        ("spec.state", "Stopped", "spec.state: is 'Stopped'; write 'Running' or 'Paused'"),
        ("metadata.name", "Chat", "metadata.name: is 'Chat'; write lowercase letters, digits"),
        ("metadata.name", "c\n", "metadata.name: is 'c\\n'; write lowercase letters, digits"),
        ("metadata.name", "", "metadata.name: is ''; write at least 1 characters"),
        ("metadata.name", "a" * 64, "metadata.name: is 'aaa"),
        ("metadata.name", 5, "metadata.name: is 5; write a string"),
        ("metadata.namespace", "a.b", "metadata.namespace: is 'a.b'; write lowercase"),
        ("metadata.labels", {"a": 1}, "metadata.labels.a: is 1; write a string"),
    ],
)
def test_refused_with_name_value_and_remedy(chat, path, value, line):
    put(chat, path, value)
    assert first_violation(chat).startswith(line)


@pytest.mark.parametrize("field", ["revision", "credentialsSecretRef"])
def test_hub_fields_are_refused_elsewhere(batch, field):
    batch["spec"]["model"][field] = {"name": "x"} if field.endswith("Ref") else "main"
    assert first_violation(batch) == f"spec.model.{field}: only for hf:// URIs; remove it"


def test_best_effort_forbids_an_slo_and_may_have_a_floor(batch):
    batch["spec"]["resources"] = {"minSharePercent": 10}
    assert LLMService.model_validate(batch).spec.resources.min_share_percent == 10
    batch["spec"]["slo"] = {"ttftMs": 1, "tpotMs": 1}
    assert first_violation(batch) == "spec.slo: forbidden for class BE; remove it"


def test_every_rule_has_a_cel_text_and_a_remedy():
    for rule, _ in (*SPEC_RULES, *MODEL_RULES, *RESOURCES_RULES):
        assert "self." in rule.cel
        assert rule.message


def test_services_are_immutable(chat):
    service = LLMService.model_validate(chat)
    with pytest.raises(ValidationError):
        service.spec.priority = 5


def test_every_condition_is_described_and_every_reason_used():
    assert set(CONDITIONS) == set(ConditionType)
    used = {reason for _, reasons in CONDITIONS.values() for reason in reasons}
    assert used | {Reason.PENDING} == set(Reason)
