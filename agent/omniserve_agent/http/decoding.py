"""Bodies into requests: every refusal names the field, what it is and what would be right."""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from omniserve_agent.http.errors import ApiError, invalid
from omniserve_agent.http.protocol import NEUTRAL_VALUES, REMEDIES

Request = TypeVar("Request", bound=msgspec.Struct)

_PLACE = re.compile(r" - at `\$\.?(?P<path>.*)`$")
_NAMED = re.compile(r"(?P<kind>unknown|missing required) field `(?P<name>.*?)`")


async def read_body(request: web.Request) -> dict[str, Any]:
    """The JSON object of a request, without nulls: in this API null is the same as absent."""
    if request.content_type != "application/json":
        raise ApiError(
            415, f"Content-Type is {request.content_type!r}; send JSON as application/json"
        )
    raw = await request.read()
    try:
        body = msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise invalid(f"the body is not valid JSON: {error}; send one JSON object") from error
    if not isinstance(body, dict):
        raise invalid(f"the body is a JSON {type(body).__name__}; send a JSON object")
    return {name: _without_nulls(value) for name, value in body.items() if value is not None}


def decode(body: dict[str, Any], kind: type[Request]) -> Request:
    """`body` as a request of `kind`; ApiError 400 with `param` otherwise."""
    known = kind.__struct_fields__
    wanted = {
        name: value for name, value in body.items() if name in known or not _is_neutral(name, value)
    }
    try:
        return msgspec.convert(wanted, kind)
    except msgspec.ValidationError as error:
        raise _explained(str(error), body) from error


def _is_neutral(name: str, value: object) -> bool:
    return any(type(value) is type(v) and value == v for v in NEUTRAL_VALUES.get(name, ()))


def _without_nulls(value: object) -> object:
    if isinstance(value, dict):
        return {name: _without_nulls(item) for name, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


def _explained(text: str, body: dict[str, Any]) -> ApiError:
    place = _PLACE.search(text)
    path = place["path"] if place else ""
    named = _NAMED.search(text)
    if named:
        param = f"{path}.{named['name']}" if path else named["name"]
        if named["kind"] == "unknown":
            return invalid(f"{param} is not supported; remove it", param, "unsupported_parameter")
        return invalid(f"{param} is missing; {_remedy(param)}", param, "missing_required_parameter")
    reason = _PLACE.sub("", text)
    reason = reason[:1].lower() + reason[1:]
    if not path:
        return invalid(f"the body: {reason}; send one JSON object")
    return invalid(f"{path}{_shown(path, body)}: {_advice(path, reason)}", path, "invalid_value")


def _advice(path: str, reason: str) -> str:
    name = _field(path)
    return f"{reason}; {REMEDIES[name]}" if name in REMEDIES else reason


def _remedy(param: str) -> str:
    return REMEDIES.get(_field(param), "it is required")


def _field(path: str) -> str:
    return re.sub(r"\[.*?\]", "", path.rpartition(".")[2])


def _shown(path: str, body: dict[str, Any]) -> str:
    """` is VALUE` for a short top-level value."""
    if path not in body:
        return ""
    text = msgspec.json.encode(body[path]).decode(errors="replace")
    return f" is {text}" if len(text) <= 60 else f" is {text[:57]}..."
