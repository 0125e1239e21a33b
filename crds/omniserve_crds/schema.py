"""JSON schema of a pydantic model to a structural schema, as a CustomResourceDefinition wants it.

Structural schemas have no `$ref`, no nullable `anyOf`, no `patternProperties` and no tuples; every
string, list and map here has a bound, or the API server cannot estimate the cost of CEL rules.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel

from omniserve_crds.fields import PATTERN_HINTS
from omniserve_crds.rules import Rule

Schema = dict[str, Any]

# Kept as they are; everything else is rewritten below or has no meaning in a CRD.
_PLAIN = (
    *("type", "enum", "minimum", "maximum", "maxLength", "minLength"),
    *("maxItems", "minItems", "maxProperties", "required", "description"),
)
_INT32_MAX = 2**31 - 1


class NotStructuralError(Exception):
    """A model says something that a CRD cannot."""


def structural(
    model: type[BaseModel],
    rules: Mapping[str, Iterable[Rule]],
    field_rules: Mapping[tuple[str, str], Iterable[Rule]],
    defaults: bool,
) -> Schema:
    """`model` as a structural schema.

    `rules` belong to a model by its name, `field_rules` to (model's name, field's name outside).
    `defaults`: the server fills in what is absent. Not for what programs write: they compare.
    """
    document = model.model_json_schema(by_alias=True, mode="validation")
    rewriter = _Rewriter(document.pop("$defs", {}), rules, field_rules, defaults)
    return rewriter.model(model.__name__, document)


class _Rewriter:
    def __init__(
        self,
        definitions: Mapping[str, Schema],
        rules: Mapping[str, Iterable[Rule]],
        field_rules: Mapping[tuple[str, str], Iterable[Rule]],
        defaults: bool,
    ) -> None:
        self._definitions = definitions
        self._rules = rules
        self._field_rules = field_rules
        self._defaults = defaults

    def model(self, name: str, source: Schema) -> Schema:
        """An object with its fields' and its own rules."""
        schema = {key: source[key] for key in _PLAIN if key in source}
        if "properties" in source:
            schema["properties"] = {
                field: self._field(name, field, value)
                for field, value in source["properties"].items()
            }
        _add_rules(schema, self._rules.get(name, ()))
        return schema

    def _field(self, owner: str, field: str, source: Schema) -> Schema:
        schema = self._value(f"{owner}.{field}", source)
        _add_rules(schema, self._field_rules.get((owner, field), ()))
        return schema

    def _value(self, where: str, source: Schema) -> Schema:
        inner = _without_null(where, source)
        reference = inner.get("$ref")
        name = reference.rpartition("/")[2] if reference else ""
        target = self._definitions[name] if name else inner
        schema = self._by_type(where, name, target)
        _describe(schema, source, inner)
        if self._defaults:
            _default(schema, source)
        return schema

    def _by_type(self, where: str, name: str, source: Schema) -> Schema:
        kind = source.get("type")
        if kind == "object" and "properties" in source:
            return self.model(name, source)
        if kind == "object":
            return self._map(where, source)
        if kind == "array":
            schema = _bounded(where, source, "maxItems")
            return schema | {"items": self._value(f"{where}[]", source["items"])}
        if kind == "string":
            return _string(where, source)
        if kind in ("integer", "boolean"):
            return _number(source)
        raise NotStructuralError(
            f"{where}: type {kind!r} is not used in a CRD; give the field a type"
        )

    def _map(self, where: str, source: Schema) -> Schema:
        """Keys cannot be constrained by a structural schema: the operator looks at them."""
        values = [*source.get("patternProperties", {}).values()]
        value: Schema = values[0] if values else source["additionalProperties"]
        schema = _bounded(where, source, "maxProperties")
        return schema | {"additionalProperties": self._value(f"{where}{{}}", value)}


def _without_null(where: str, source: Schema) -> Schema:
    """`anyOf: [X, null]` is X: an absent field says the same."""
    if "anyOf" not in source:
        return source
    others: list[Schema] = [option for option in source["anyOf"] if option.get("type") != "null"]
    if len(others) != 1:
        raise NotStructuralError(f"{where}: a choice of types; a CRD field has one")
    return others[0]


def _string(where: str, source: Schema) -> Schema:
    """A pattern with a hint becomes a CEL rule, whose message says what to write."""
    schema = {key: source[key] for key in _PLAIN if key in source}
    if "const" in source:
        schema["enum"] = [source["const"]]
    if "enum" not in schema:
        schema = _bounded(where, source, "maxLength")
    if pattern := source.get("pattern"):
        text = pattern.replace("\\", "\\\\")
        _add_rules(schema, [Rule("", f"self.matches('{text}')", PATTERN_HINTS[pattern])])
    return schema


def _number(source: Schema) -> Schema:
    schema = {key: source[key] for key in _PLAIN if key in source}
    if source.get("type") == "integer":
        schema["format"] = "int32" if source.get("maximum", 2**63) <= _INT32_MAX else "int64"
    return schema


def _bounded(where: str, source: Schema, bound: str) -> Schema:
    if bound not in source:
        raise NotStructuralError(f"{where}: has no {bound}; give the model's field one")
    return {key: source[key] for key in _PLAIN if key in source}


def _describe(schema: Schema, *sources: Schema) -> None:
    """The field's own words before those of its type."""
    texts = [source["description"] for source in sources if "description" in source]
    text = texts[0] if texts else schema.get("description")
    if text:
        schema["description"] = " ".join(text.split())


def _default(schema: Schema, source: Schema) -> None:
    """Empty values and absent ones need no default; a model's defaults lie in its fields."""
    default = source.get("default")
    if default in (None, "", [], {}) or schema["type"] == "array":
        return
    schema["default"] = {} if schema["type"] == "object" else default


def _add_rules(schema: Schema, rules: Iterable[Rule]) -> None:
    found = [_validation(rule) for rule in rules]
    if found:
        schema.setdefault("x-kubernetes-validations", []).extend(found)


def _validation(rule: Rule) -> Schema:
    place = {"fieldPath": f".{rule.field}"} if rule.field else {}
    return {"rule": rule.cel, "message": rule.message} | place
