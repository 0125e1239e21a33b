"""Bodies into requests: every refusal names the field, what it is and what would be right."""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from omniserve_agent.http.errors import ApiError, invalid
from omniserve_agent.http.protocol import NEUTRAL_VALUES, REMEDIES
from omniserve_agent.http.state import STATE

Request = TypeVar("Request", bound=msgspec.Struct)

_PLACE = re.compile(r" - at `\$\.?(?P<path>.*)`$")
_TYPES = re.compile(r"`([a-z]+(?: \| [a-z]+)*)`")
_WHOLE = re.compile(r"(?<=\d)\.0\b")  # limits of numbers are written without
_TYPE_NAMES = {
    "int": "an integer",
    "float": "a number",
    "str": "a string",
    "bool": "a boolean",
    "array": "an array",
    "object": "an object",
}
_JSON_NAMES = {
    type(None): "null",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    str: "a string",
    list: "an array",
}
_LISTS_OF_OBJECTS = frozenset({"messages", "messages[].content"})
MAX_VALUES = 65536  # far above 4096 messages of some parts each
_NAMED = re.compile(r"(?P<kind>unknown|missing required) field `(?P<name>.*?)`")


async def read_body(request: web.Request) -> dict[str, Any]:
    """The JSON object of a request, without what asks for nothing: null, which in this API is the
    same as absent, and neutral values of fields that are not supported."""
    if request.content_type != "application/json":
        raise ApiError(
            415,
            f"Content-Type is {request.content_type!r}; send JSON as application/json",
            code="unsupported_media_type",
        )
    raw = await request.app[STATE].bodies.read(request)
    try:
        body = msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise invalid(f"the body is not valid JSON: {error}; send one JSON object") from error
    if not isinstance(body, dict):
        raise invalid(f"the body is {_JSON_NAMES[type(body)]}; send a JSON object")
    if body.get("tool_choice") == "none":  # so tools are not to be used
        body.pop("tools", None)
    try:
        return asked(body, Budget())
    except RecursionError as error:
        raise invalid("the body is nested too deeply; send one JSON object") from error


def decode(body: dict[str, Any], kind: type[Request]) -> Request:
    """`body` as a request of `kind`; ApiError 400 with `param` otherwise."""
    try:
        return msgspec.convert(body, kind)
    except msgspec.ValidationError as error:
        raise _explained(str(error), body) from error


class Budget:
    """How many values of one body may still be looked at: the event loop waits meanwhile."""

    def __init__(self) -> None:
        self.left = MAX_VALUES

    def spend(self, count: int) -> None:
        """ApiError 400 if that is more than is left."""
        self.left = max(0, self.left - count)
        if not self.left:
            raise invalid(f"the body has more than {MAX_VALUES} values outside its prompts")


def asked(body: dict[str, Any], budget: Budget) -> dict[str, Any]:
    """`body` without members that ask for nothing; RecursionError if it is nested too deeply."""
    return _asked_members(body, "", budget)


def _asked_members(members: dict[str, Any], inside: str, budget: Budget) -> dict[str, Any]:
    budget.spend(len(members))
    return {
        name: _asked(value, inside + name, budget)
        for name, value in members.items()
        if not _is_neutral(inside, name, value)
    }


def _asked(value: object, place: str, budget: Budget) -> object:
    """`value` at `place` without members that ask for nothing, whole numbers as integers. Lists
    that cannot hold objects, such as token ids, stay as they are."""
    if isinstance(value, dict):
        return _asked_members(value, f"{place}.", budget)
    if isinstance(value, list) and place in _LISTS_OF_OBJECTS:
        budget.spend(len(value))
        return [_asked(item, f"{place}[]", budget) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _is_neutral(inside: str, name: str, value: object) -> bool:
    if value is None:
        return True
    neutral = () if "." in name else NEUTRAL_VALUES.get(inside + name, ())
    return any(type(value) is type(v) and value == v for v in neutral)


def _explained(text: str, body: dict[str, Any]) -> ApiError:
    place = _PLACE.search(text)
    path = place["path"] if place else ""
    named = _NAMED.search(text)
    if named:
        param = f"{path}.{named['name']}" if path else named["name"]
        if named["kind"] == "unknown":
            return invalid(f"{param} is not supported; remove it", param, "unsupported_parameter")
        return invalid(f"{param} is missing; {_remedy(param)}", param, "missing_required_parameter")
    reason = _worded(_PLACE.sub("", text))
    if not path:
        return invalid(f"the body: {reason}; send one JSON object")
    return invalid(f"{path}{_shown(path, body)}: {_advice(path, reason)}", path, "invalid_value")


def _worded(reason: str) -> str:
    """msgspec's sentence in the words of JSON: "expected an integer or null, got a string"."""

    def names(types: re.Match[str]) -> str:
        *firsts, last = (_TYPE_NAMES.get(name, name) for name in types[1].split(" | "))
        return f"{', '.join(firsts)} or {last}" if firsts else last

    return _WHOLE.sub("", _TYPES.sub(names, reason[:1].lower() + reason[1:]))


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
