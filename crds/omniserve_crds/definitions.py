"""The CustomResourceDefinitions: schema, rules, columns, subresources."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from omniserve_crds.durations import duration_rules
from omniserve_crds.group import GROUP, LLM_SERVICE_KIND, SERVING_NODE_KIND, VERSION
from omniserve_crds.llmservice import MODEL_RULES, RESOURCES_RULES, SPEC_RULES, Spec
from omniserve_crds.placement import TOLERATION_RULES
from omniserve_crds.rules import Rule
from omniserve_crds.schema import Schema, structural
from omniserve_crds.servingnode import ServingNodeSpec, ServingNodeStatus
from omniserve_crds.status import LLMServiceStatus
from omniserve_crds.uris import URI_RULES

NAME_RULE = Rule(
    "metadata.name",
    "size(self.metadata.name) <= 63 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
    "metadata.name: write at most 63 lowercase letters, digits and '-', starting with a letter and "
    "ending alphanumeric: a Service of that name is made",
)

_RULES = {
    "Spec": tuple(rule for rule, _ in SPEC_RULES),
    "Model": tuple(rule for rule, _ in MODEL_RULES),
    "Resources": tuple(rule for rule, _ in RESOURCES_RULES),
    "Toleration": tuple(rule for rule, _ in TOLERATION_RULES),
}
_FIELD_RULES = {
    ("Model", "uri"): URI_RULES,
    ("Slo", "window"): duration_rules("10s", "1h"),
}


def llm_service_definition() -> Schema:
    """The CRD of LLMService."""
    spec = structural(Spec, _RULES, _FIELD_RULES, defaults=True)
    words = "One model, served in the class LS or BE."
    schema = _object(spec, LLMServiceStatus, words)
    schema["required"] = ["spec"]
    # Only metadata.name and generateName can be read in a rule; there is no field to point at.
    schema["x-kubernetes-validations"] = [{"rule": NAME_RULE.cel, "message": NAME_RULE.message}]
    version = _version(schema, _LLM_SERVICE_COLUMNS)
    version["subresources"]["scale"] = {
        "specReplicasPath": ".spec.replicas",
        "statusReplicasPath": ".status.replicas",
        "labelSelectorPath": ".status.selector",
    }
    return _definition(LLM_SERVICE_KIND, "llmservices", "llms", "Namespaced", version)


def serving_node_definition() -> Schema:
    """The CRD of ServingNode."""
    words = "What a node shall run (spec, the operator's) and does (status, its agent's)."
    spec = structural(ServingNodeSpec, {}, {}, defaults=False)
    schema = _object(spec, ServingNodeStatus, words)
    version = _version(schema, _SERVING_NODE_COLUMNS)
    return _definition(SERVING_NODE_KIND, "servingnodes", "servnode", "Cluster", version)


def _object(spec: Schema, status: type[BaseModel], description: str) -> Schema:
    status_schema = structural(status, {}, {}, defaults=False)
    status_schema["properties"]["conditions"] |= {
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
    }
    return {
        "type": "object",
        "description": description,
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": spec,
            "status": status_schema,
        },
    }


def _version(schema: Schema, columns: list[dict[str, Any]]) -> Schema:
    return {
        "name": VERSION,
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "additionalPrinterColumns": columns,
        "schema": {"openAPIV3Schema": schema},
    }


def _definition(kind: str, plural: str, short: str, scope: str, version: Schema) -> Schema:
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{plural}.{GROUP}",
            "labels": {
                "app.kubernetes.io/name": "omniserve",
                "app.kubernetes.io/part-of": "omniserve",
            },
        },
        "spec": {
            "group": GROUP,
            "scope": scope,
            "names": {
                "kind": kind,
                "listKind": f"{kind}List",
                "plural": plural,
                "singular": kind.lower(),
                "shortNames": [short],
                "categories": ["omniserve"],
            },
            "conversion": {"strategy": "None"},
            "versions": [version],
        },
    }


def _column(name: str, path: str, kind: str = "string", wide: bool = False) -> dict[str, Any]:
    column: dict[str, Any] = {"name": name, "type": kind, "jsonPath": path}
    return column | {"priority": 1} if wide else column


_LLM_SERVICE_COLUMNS = [
    _column("Class", ".spec.class"),
    _column("Ready", '.status.conditions[?(@.type=="Ready")].status'),
    _column("SLO", ".status.slo.summary"),
    _column("Model", ".spec.model.uri"),
    _column("Replicas", ".status.readySummary"),
    _column("URL", ".status.url"),
    _column("Age", ".metadata.creationTimestamp", "date"),
    _column("Reason", '.status.conditions[?(@.type=="Ready")].reason', wide=True),
    _column("Nodes", ".status.nodeNames", wide=True),
]
_SERVING_NODE_COLUMNS = [
    _column("Engines", ".status.engineSummary"),
    _column("Services", ".status.readySummary"),
    _column("Drain", ".spec.drain", "boolean"),
    _column("Heartbeat", ".status.heartbeatTime", "date"),
    _column("Version", ".status.agentVersion"),
    _column("Age", ".metadata.creationTimestamp", "date"),
    _column("Address", ".status.address", wide=True),
]
