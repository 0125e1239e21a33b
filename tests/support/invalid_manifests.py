"""Manifests and who refuses them: one table for pydantic, the CEL library and a real API server.

`refused_by`: `schema` (types, bounds, enums, required fields), `cel` (rules), `strict` (unknown
fields, under strict validation; pruned otherwise), `operator` (pydantic alone: what a structural
schema cannot say). `words` stand in the message of whoever refuses.
"""

import copy
from dataclasses import dataclass

ABSENT = object()

CHAT = {
    "apiVersion": "omniserve.io/v1alpha1",
    "kind": "LLMService",
    "metadata": {"name": "chat", "namespace": "default"},
    "spec": {
        "class": "LS",
        "model": {"uri": "hf://org/name"},
        "slo": {"ttftMs": 500, "tpotMs": 50},
    },
}
BATCH = {
    "apiVersion": "omniserve.io/v1alpha1",
    "kind": "LLMService",
    "metadata": {"name": "batch", "namespace": "default"},
    "spec": {"class": "BE", "model": {"uri": "file:///models/m"}},
}


@dataclass(frozen=True)
class Case:
    base: dict
    path: str
    value: object
    refused_by: str
    words: str

    @property
    def name(self):
        shown = "absent" if self.value is ABSENT else repr(self.value)[:40]
        return f"{self.base['spec']['class']}-{self.path}-{shown}"

    def manifest(self):
        return changed(self.base, self.path, self.value)


def changed(base, path, value):
    """`base` with the value at the dotted `path` put in, or taken out if it is ABSENT."""
    document = copy.deepcopy(base)
    *parents, last = path.split(".")
    place = document
    for part in parents:
        place = place.setdefault(part, {})
    if value is ABSENT:
        del place[last]
    else:
        place[last] = value
    return document


def _toleration(**fields):
    return [fields]


URI_FORMS = "write hf://org/name, file:///path, pvc://NAME/path or python://package/resource"
NO_INNER = "write a path without empty, '.' or '..' parts"

INVALID = [
    # the schema
    Case(CHAT, "spec.class", "XX", "schema", '"LS", "BE"'),
    Case(CHAT, "spec.class", ABSENT, "schema", "Required"),
    Case(CHAT, "spec.model", ABSENT, "schema", "Required"),
    Case(CHAT, "spec.model.uri", ABSENT, "schema", "Required"),
    Case(CHAT, "spec.slo.tpotMs", ABSENT, "schema", "Required"),
    Case(CHAT, "spec.slo.ttftMs", 0, "schema", "greater than or equal to 1"),
    Case(CHAT, "spec.slo.ttftMs", 3_600_001, "schema", "less than or equal to 3600000"),
    Case(CHAT, "spec.slo.ttftMs", "500", "schema", "must be of type integer"),
    Case(CHAT, "spec.slo.objectivePercent", 100, "schema", "less than or equal to 99"),
    Case(CHAT, "spec.slo.minSamples", 0, "schema", "greater than or equal to 1"),
    Case(CHAT, "spec.priority", 101, "schema", "less than or equal to 100"),
    Case(CHAT, "spec.replicas", -1, "schema", "greater than or equal to 0"),
    Case(CHAT, "spec.model.dtype", "fp8", "schema", '"auto", "float32"'),
    Case(CHAT, "spec.model.kvCacheDtype", "fp8", "schema", '"auto", "int8"'),
    Case(CHAT, "spec.model.maxModelLen", 15, "schema", "greater than or equal to 16"),
    Case(CHAT, "spec.model.servedName", "a" * 129, "schema", "128"),
    Case(CHAT, "spec.placement.colocation", "No", "schema", '"Allowed", "Exclusive"'),
    Case(CHAT, "spec.placement.tolerations", [{"operator": "Exists"}] * 17, "schema", "16"),
    Case(CHAT, "spec.auth", {}, "schema", "Required"),
    Case(CHAT, "spec.state", "Stopped", "schema", '"Running", "Paused"'),
    # rules over several fields
    Case(CHAT, "spec.slo", ABSENT, "cel", "missing for class LS; write slo.ttftMs and slo.tpotMs"),
    Case(BATCH, "spec.slo", {"ttftMs": 1, "tpotMs": 1}, "cel", "forbidden for class BE; remove it"),
    Case(CHAT, "spec.resources.minSharePercent", 10, "cel", "forbidden for class LS; remove it"),
    Case(CHAT, "spec.resources.gpus", 2, "cel", "tensor parallelism is not supported yet"),
    Case(BATCH, "spec.model.revision", "main", "cel", "only for hf:// URIs; remove it"),
    Case(
        *(BATCH, "spec.model.credentialsSecretRef", {"name": "x"}, "cel"),
        words="only for hf:// URIs; remove it",
    ),
    Case(
        *(CHAT, "spec.placement.tolerations", _toleration(), "cel"),
        words="name the taint's key or use operator Exists",
    ),
    Case(
        *(CHAT, "spec.placement.tolerations"),
        *(_toleration(key="a", operator="Exists", value="b"), "cel"),
        words="forbidden for operator Exists; remove it",
    ),
    Case(
        *(CHAT, "spec.placement.tolerations", _toleration(key="a", tolerationSeconds=3), "cel"),
        words="set effect to NoExecute",
    ),
    # rules over one value
    Case(CHAT, "metadata.name", "9b-chat", "cel", "starting with a letter"),
    Case(CHAT, "metadata.name", "a.b", "cel", "lowercase letters, digits and '-'"),
    Case(CHAT, "spec.model.uri", "s3://bucket/x", "cel", URI_FORMS),
    Case(CHAT, "spec.model.uri", "org/name", "cel", URI_FORMS),
    Case(CHAT, "spec.model.uri", "hf://org", "cel", "write hf://org/name, with exactly two parts"),
    Case(CHAT, "spec.model.uri", "hf://../name", "cel", "with exactly two parts"),
    Case(CHAT, "spec.model.uri", "file://models/m", "cel", "write an absolute path: file:///path"),
    Case(CHAT, "spec.model.uri", "file:///a/../b", "cel", NO_INNER),
    Case(CHAT, "spec.model.uri", "file:///a//b", "cel", NO_INNER),
    Case(CHAT, "spec.model.uri", "file:///", "cel", NO_INNER),
    Case(CHAT, "spec.model.uri", "file:///a b", "cel", "write it without spaces"),
    Case(CHAT, "spec.model.uri", "file:///a\\b", "cel", "write it without spaces"),
    Case(CHAT, "spec.model.uri", "pvc://Weights/a", "cel", "write pvc://NAME/path"),
    Case(CHAT, "spec.model.uri", "pvc://weights", "cel", NO_INNER),
    Case(CHAT, "spec.model.uri", "python://pkg-x/m", "cel", "with an importable package name"),
    Case(CHAT, "spec.model.uri", "python://pkg/./m", "cel", NO_INNER),
    Case(CHAT, "spec.model.servedName", "a b", "cel", "starting alphanumeric"),
    Case(CHAT, "spec.model.revision", "-x", "cel", "write a branch, tag or commit"),
    Case(CHAT, "spec.slo.window", "9s", "cel", "write a duration from 10s to 1h"),
    Case(CHAT, "spec.slo.window", "61m", "cel", "write a duration from 10s to 1h"),
    Case(CHAT, "spec.slo.window", "5 min", "cel", "write a duration such as 30s, 5m or 1m30s"),
    Case(CHAT, "spec.slo.window", "", "cel", "write a duration such as 30s, 5m or 1m30s"),
    Case(
        *(CHAT, "spec.auth.apiKeysSecretRef.name", "Keys", "cel"),
        words="write lowercase letters, digits, '-' and '.'",
    ),
    Case(CHAT, "spec.placement.nodeSelector", {"a": "b c"}, "cel", "a Kubernetes label value"),
    Case(
        *(CHAT, "spec.placement.tolerations", _toleration(key="a b"), "cel"),
        words="write a Kubernetes label key",
    ),
    # unknown fields
    Case(CHAT, "spec.modle", {}, "strict", "spec.modle"),
    Case(CHAT, "spec.slo.ttft_ms", 5, "strict", "spec.slo.ttft_ms"),
    Case(CHAT, "spec.model.url", "hf://a/b", "strict", "spec.model.url"),
    # keys of maps
    Case(CHAT, "spec.placement.nodeSelector", {"a b": "c"}, "operator", "label key"),
]

VALID = [
    (CHAT, "spec.priority", 0),
    (CHAT, "spec.model.uri", "hf://HuggingFaceTB/SmolLM2-135M"),
    (CHAT, "spec.model.uri", "file:///models/m.gguf"),
    (CHAT, "spec.model.uri", "file:///models/.hidden/..x/m/"),
    (CHAT, "spec.model.uri", "pvc://weights/a/b"),
    (CHAT, "spec.model.uri", "python://pkg.sub/dir/m.gguf"),
    (CHAT, "spec.model.servedName", "org/model:v1.2"),
    (CHAT, "spec.model.revision", "refs/pr/3"),
    (CHAT, "spec.model.credentialsSecretRef", {"name": "hub.token"}),
    (CHAT, "spec.model.maxModelLen", 1_048_576),
    (CHAT, "spec.slo.window", "10s"),
    (CHAT, "spec.slo.window", "1h"),
    (CHAT, "spec.slo.window", "1m30s"),
    (CHAT, "spec.slo.objectivePercent", 1),
    (CHAT, "spec.replicas", 0),
    (CHAT, "spec.resources", {"gpus": 1}),
    (CHAT, "spec.placement.nodeSelector", {"example.com/pool": "a", "empty": ""}),
    (CHAT, "spec.placement.tolerations", _toleration(operator="Exists")),
    (
        *(CHAT, "spec.placement.tolerations"),
        _toleration(key="gpu", effect="NoExecute", tolerationSeconds=3),
    ),
    (CHAT, "spec.placement.colocation", "Exclusive"),
    (CHAT, "spec.auth", {"apiKeysSecretRef": {"name": "keys"}}),
    (CHAT, "spec.state", "Paused"),
    (BATCH, "spec.resources", {"minSharePercent": 10}),
    (BATCH, "spec.priority", -100),
]
