"""What an API server says of an object under a CRD's schema: schema, unknown fields, CEL.

Enough of a validator for the constructs that `omniserve_crds.schema` writes; the same table runs
on a real apiextensions-apiserver in tests/e2e.
"""

from dataclasses import dataclass
from functools import cache

import celpy

_TYPES = {"string": str, "integer": int, "boolean": bool, "array": list, "object": dict}


@dataclass(frozen=True)
class Fault:
    refused_by: str  # schema, strict or cel
    path: str
    message: str


def faults(schema, document):
    """Every fault; as on a server, rules are looked at only where the schema holds."""
    document = with_defaults(schema, document)
    found = list(_schema_faults(schema, document, ""))
    return found or list(_rule_faults(schema, document, ""))


def with_defaults(schema, value):
    if isinstance(value, dict) and "properties" in schema:
        filled = dict(value)
        for name, inner in schema["properties"].items():
            if name not in filled and "default" in inner:
                filled[name] = inner["default"]
            if name in filled:
                filled[name] = with_defaults(inner, filled[name])
        return filled
    if isinstance(value, list):
        return [with_defaults(schema["items"], item) for item in value]
    return value


def _schema_faults(schema, value, path):
    kind = _TYPES[schema["type"]]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        yield Fault("schema", path, f"must be of type {schema['type']}")
        return
    if "enum" in schema and value not in schema["enum"]:
        yield Fault("schema", path, "supported: " + ", ".join(f'"{v}"' for v in schema["enum"]))
    yield from _bound_faults(schema, value, path)
    yield from _inner_faults(schema, value, path)


def _bound_faults(schema, value, path):
    size = value if isinstance(value, int) else len(value)
    for low in ("minimum", "minLength"):
        if low in schema and size < schema[low]:
            yield Fault("schema", path, f"should be greater than or equal to {schema[low]}")
    for high in ("maximum", "maxLength", "maxItems", "maxProperties"):
        if high in schema and size > schema[high]:
            yield Fault("schema", path, f"should be less than or equal to {schema[high]}")


def _inner_faults(schema, value, path):
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _schema_faults(schema["items"], item, f"{path}[{index}]")
    if not isinstance(value, dict):
        return
    for name in schema.get("required", []):
        if name not in value:
            yield Fault("schema", f"{path}.{name}", "Required value")
    for name, item in value.items():
        inner = _inner_schema(schema, name)
        if inner is None:
            if path != ".metadata":
                yield Fault("strict", f"{path}.{name}", f'unknown field "{path[1:]}.{name}"')
        else:
            yield from _schema_faults(inner, item, f"{path}.{name}")


def _inner_schema(schema, name):
    return schema.get("properties", {}).get(name) or schema.get("additionalProperties")


def _rule_faults(schema, value, path):
    for validation in schema.get("x-kubernetes-validations", []):
        if not holds(validation["rule"], value):
            yield Fault("cel", path + validation.get("fieldPath", ""), validation["message"])
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _rule_faults(schema["items"], item, f"{path}[{index}]")
    if isinstance(value, dict):
        for name, item in value.items():
            inner = _inner_schema(schema, name)
            if inner is not None:
                yield from _rule_faults(inner, item, f"{path}.{name}")


def holds(rule, value):
    return bool(_program(rule).evaluate({"self": celpy.json_to_cel(value)}))


@cache
def _program(rule):
    environment = celpy.Environment()
    return environment.program(environment.compile(rule))
