"""Pydantic's errors in the words of a manifest's author: path, value, what to write instead."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from omniserve_crds.fields import PATTERN_HINTS
from omniserve_crds.rules import RULE_ERROR

Path = tuple[int | str, ...]


def violations(model: type[BaseModel], error: ValidationError) -> list[str]:
    """One line per violation: `spec.slo.ttftMs: is 0; the least is 1`."""
    return [_line(model, details) for details in error.errors(include_url=False)]


def _line(model: type[BaseModel], details: ErrorDetails) -> str:
    path: Path = details["loc"]
    context: Mapping[str, Any] = details.get("ctx", {})
    if details["type"] == RULE_ERROR:
        return f"{_dotted((*path, context['field']))}: {context['text']}"
    if details["type"] == "missing":
        return f"{_dotted(path)}: missing; required: {_description(model, path)}"
    if details["type"] == "extra_forbidden":
        return f"{_dotted(path)}: unknown field; {_alternatives(model, path)}"
    if details["type"] == "value_error":
        return f"{_dotted(path)}: {context['error']}"
    return f"{_dotted(path)}: is {_shown(details['input'])}; {_advice(details, context)}"


_ADVICE: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "int_type": lambda _: "write an integer",
    "bool_type": lambda _: "write true or false",
    "string_type": lambda _: "write a string, in quotes if it looks like something else",
    "greater_than_equal": lambda context: f"the least is {context['ge']}",
    "less_than_equal": lambda context: f"the most is {context['le']}",
    "enum": lambda context: f"write {context['expected']}",
    "literal_error": lambda context: f"write {context['expected']}",
    "string_pattern_mismatch": lambda context: PATTERN_HINTS[context["pattern"]],
    "string_too_long": lambda context: f"write at most {context['max_length']} characters",
    "string_too_short": lambda context: f"write at least {context['min_length']} characters",
    "too_long": lambda context: f"write at most {context['max_length']} entries",
    "model_type": lambda _: "write a mapping of fields",
    "dict_type": lambda _: "write a mapping",
    "list_type": lambda _: "write a list",
}


def _advice(details: ErrorDetails, context: Mapping[str, Any]) -> str:
    words = _ADVICE.get(details["type"])
    return words(context) if words else details["msg"]


def _shown(value: object) -> str:
    if value is None:
        return "empty"
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _dotted(path: Path) -> str:
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part != "[key]":
            text += f".{part}" if text else part
    return text or "object"


def _description(model: type[BaseModel], path: Path) -> str:
    owner = _owner(model, path)
    fields = {} if owner is None else owner.model_fields
    found = [f.description for f in fields.values() if f.alias == path[-1] and f.description]
    return found[0] if found else "this field"


def _alternatives(model: type[BaseModel], path: Path) -> str:
    owner = _owner(model, path)
    names = [] if owner is None else [str(f.alias) for f in owner.model_fields.values()]
    close = get_close_matches(str(path[-1]), names, n=1)
    return f"did you mean {close[0]}?" if close else f"known here: {', '.join(names)}"


def _owner(model: type[BaseModel], path: Path) -> type[BaseModel] | None:
    """The model that holds the last part of `path`, found by walking aliases."""
    owner: type[BaseModel] | None = model
    for part in path[:-1]:
        if isinstance(part, int) or owner is None:
            continue
        annotation = next((f.annotation for f in owner.model_fields.values() if f.alias == part), 0)
        owner = _model_in(annotation)
    return owner


def _model_in(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((m for m in map(_model_in, get_args(annotation)) if m is not None), None)
