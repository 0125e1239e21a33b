"""What the values may be: a closed schema, and what no schema can say."""

import json
import subprocess

import pytest
import yaml

from support.chart import ADMISSION, CHART, MONITORING

POOL = {"name": "a", "cpu": 4, "memory": "8Gi"}

# Values, and what helm says about them.
REFUSED = [
    ({"opertor": {}}, "additional properties 'opertor' not allowed"),
    ({"agent": {"image": {"tga": "1"}}}, "additional properties 'tga' not allowed"),
    ({"agentPools": [POOL | {"gpu": 1}]}, "additional properties 'gpu' not allowed"),
    ({"agentPools": [{"name": "a"}]}, "missing properties 'cpu', 'memory'"),
    ({"agentPools": [POOL | {"cpu": 1.5}]}, "got number, want integer"),
    ({"agentPools": [POOL | {"cpu": "4"}]}, "got string, want integer"),
    ({"agentPools": [POOL | {"cpu": 0}]}, "minimum: got 0, want 1"),
    ({"agentPools": [POOL | {"memory": 8}]}, "got number, want string"),
    ({"agentPools": [POOL | {"memory": "8GB"}]}, "does not match pattern"),
    ({"agentPools": [POOL | {"name": "Big_Pool"}]}, "does not match pattern"),
    ({"agentPools": [POOL | {"hugepages": {"4Mi": "1Gi"}}]}, "additional properties '4Mi'"),
    ({"agentPools": [POOL, POOL]}, 'the name "a" is used twice'),
    ({"agentPools": [POOL | {"modelVolumes": [{"name": "m"}]}]}, "missing property 'claimName'"),
    (
        {"agent": {"modelVolumes": [{"name": "m", "claimName": "c", "hostPath": "/m"}]}},
        "'oneOf' failed",
    ),
    ({"agent": {"image": {"tag": ""}}}, "minLength: got 0, want 1"),
    ({"agent": {"image": {"digest": "abc"}}}, "does not match pattern"),
    ({"agent": {"logLevel": "verbose"}}, "value must be one of 'debug', 'info', 'warning'"),
    ({"agent": {"admission": False}}, "value must be one of 'off', 'reject', 'queue'"),
    ({"agent": {"env": [{"name": "A"}]}}, "missing property 'value'"),
    (
        {"agent": {"env": [{"name": "OMNISERVE_HOST", "value": "x"}]}},
        "OMNISERVE_HOST is set already",
    ),
    (
        {
            "agent": {"env": [{"name": "A", "value": "1"}]},
            "agentPools": [POOL | {"env": [{"name": "A", "value": "2"}]}],
        },
        "agent.env and agentPools[].env: A is set already",
    ),
    ({"operator": {"env": [{"name": "OMNISERVE_PORT", "value": "1"}]}}, "operator.env:"),
    (
        {"operator": {"env": [{"name": "OMNISERVE_LEASE_NAME", "value": "x"}]}},
        "operator.env: OMNISERVE_LEASE_NAME is set already",
    ),
    ({"operator": {"leaseName": "My_Lease"}}, "does not match pattern"),
    ({"operator": {"replicas": 2}}, "additional properties 'replicas' not allowed"),
    ({"tenancy": {"defaultClasses": ["XL"]}}, "value must be one of 'LS', 'BE'"),
    ({"tenancy": {"defaultClasses": []}}, "minItems: got 0, want 1"),
    ({"watchNamespaces": "web"}, "got string, want array"),
    ({"watchNamespaces": ["Web"]}, "does not match pattern"),
    ({"crds": {"install": "yes"}}, "got string, want boolean"),
    ({"networkPolicy": {"clientsFrom": [{"pods": {}}]}}, "additional properties 'pods'"),
    ({"networkPolicy": {"egressPorts": [0]}}, "minimum: got 0, want 1"),
    ({"metrics": {"prometheusRule": {"attainmentPercent": 101}}}, "maximum: got 101, want 100"),
    ({"tests": {"through": "Ingress"}}, "value must be one of 'Service', 'Endpoints'"),
]


@pytest.mark.parametrize(("values", "message"), REFUSED, ids=[m for _, m in REFUSED])
def test_wrong_values_are_refused_by_name(refusal, values, message):
    assert message in refusal(values)


def test_lint_is_content(helm):
    done = subprocess.run(
        [helm, "lint", "--strict", CHART], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("version", ["1.20.2", "1.25.0", "1.36.0"])
def test_it_renders_for_old_and_new_servers(render, version):
    versions = [*MONITORING, ADMISSION] if version == "1.36.0" else []
    assert render(kube_version=version, api_versions=versions).objects


def test_servers_too_old_are_refused(refusal):
    assert "incompatible with Kubernetes" in refusal({}, kube_version="1.19.0")


def test_everything_may_be_left_out(render):
    """No pools, no policies, no rights: the operator alone is still a valid release."""
    values = {
        "agentPools": [],
        "rbac": {"create": False, "aggregate": False},
        "networkPolicy": {"enabled": False},
        "priorityClasses": {"create": False},
        "crds": {"install": False},
        "operator": {"serviceAccount": {"create": False, "name": "given"}},
        "agent": {"serviceAccount": {"create": False, "name": "given"}},
    }
    rendered = render(values)
    kinds = {o["kind"] for o in rendered.objects if "helm.sh/hook" not in str(o["metadata"])}
    assert kinds == {"ConfigMap", "Deployment", "Service"}  # the first: owner of what was copied
    spec = rendered.pod_specs()["Deployment/omniserve-operator"]
    assert spec["serviceAccountName"] == "given"


def _objects(schema, path=""):
    """Every object schema in a schema, with where it is."""
    if isinstance(schema, dict):
        if schema.get("type") == "object":
            yield path, schema
        for key, value in schema.items():
            yield from _objects(value, f"{path}/{key}")
    elif isinstance(schema, list):
        for index, value in enumerate(schema):
            yield from _objects(value, f"{path}/{index}")


def test_every_object_of_the_schema_is_closed():
    schema = json.loads((CHART / "values.schema.json").read_text())
    for path, found in _objects(schema):
        if path == "/properties/global":
            continue  # a parent chart's
        extra = found.get("additionalProperties")
        assert extra is False or extra == {"type": "string"}, path


def test_schema_and_values_name_the_same_things():
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert _paths(values) == _schema_paths(schema, schema) - {"global"}


def _paths(values, before=""):
    """Dotted paths of values.yaml; free maps and lists are leaves."""
    free = ("nodeSelector", "labels", "annotations", "podAnnotations", "requests", "limits")
    found = set()
    for key, value in values.items():
        path = f"{before}{key}"
        if isinstance(value, dict) and value and key not in free:
            found |= _paths(value, f"{path}.")
        else:
            found.add(path)
    return found


def _schema_paths(node, schema, before=""):
    found = set()
    for key, value in node["properties"].items():
        target = value
        if "$ref" in value:
            target = schema["$defs"][value["$ref"].removeprefix("#/$defs/")]
        path = f"{before}{key}"
        if target.get("properties") and key not in ("requests", "limits"):
            found |= _schema_paths(target, schema, f"{path}.")
        else:
            found.add(path)
    return found
