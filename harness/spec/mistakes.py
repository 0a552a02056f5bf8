"""What pydantic refuses, in sentences: key, what was found, what is allowed, and the nearest name of a mistyped key."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import BaseModel, ValidationError

from harness.errors import SpecError
from harness.gan.hparams import STRIDES_PATTERN, WIDTHS_PATTERN
from harness.spec.params import FUNCTION_PATTERN, NAME_PATTERN
from harness.text import did_you_mean

_MISSING = {
    "missing": "missing; it is required",
    "union_tag_not_found": 'needs type = "float", "int" or "categorical"',
}
# What a value must be, where pydantic says it in words of Python.
_REQUIRED = {
    "bool_type": "must be true or false",
    "dict_type": "must be a table",
    "list_type": "must be a list",
    "model_attributes_type": "must be a table",
    "model_type": "must be a table",
    "string_type": "must be a string",
    "too_short": "must not be empty",
    "tuple_type": "must be a list",
}
_PATTERNS = {
    FUNCTION_PATTERN: "must be module:function, such as mynets.residual:build",
    NAME_PATTERN: "must be a name of lower-case letters, digits, - and _",
    STRIDES_PATTERN: "must be auto, or 1 and 2 joined by hyphens, such as 2-2-1",
    WIDTHS_PATTERN: "must be auto, or numbers joined by hyphens, such as 512-256",
}
_SCALARS = ("bool", "int", "float", "str")  # the alternatives of a value of any type
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_LONGEST = 120  # characters of a value that is repeated


def refuse(shown_as: str, mistakes: Iterable[str], hint: str = "") -> None:
    """Nothing where there is no mistake.

    Raises:
        SpecError: it lists them all.
    """
    listed = [_CONTROL.sub(lambda found: repr(found[0])[1:-1], mistake) for mistake in mistakes]
    if listed:
        raise SpecError(f"{shown_as}: {len(listed)} mistake{'s' * (len(listed) != 1)}", hint, listed)


def pydantic_problems(error: ValidationError, model: type[BaseModel]) -> Iterator[str]:
    """A sentence for each of pydantic's errors on a model."""
    items = error.errors(include_url=False)
    # Of the alternatives of a union only the nearest is reported: the first that the value has the right type for.
    nearest: dict[tuple[int | str, ...], tuple[bool, int | str | None]] = {}
    for item in items:
        union, alternative = _alternative(item["loc"])
        other_type = item["type"].endswith(("_type", "_parsing", "literal_error"))
        if union not in nearest or other_type < nearest[union][0]:
            nearest[union] = (other_type, alternative)
    for item in items:
        union, alternative = _alternative(item["loc"])
        if nearest[union][1] == alternative:
            key = ".".join(str(part) for part in item["loc"] if not _is_alternative(part))
            yield f"{key or 'file'}: {_message(item, model)}"


def refusal(item: Any) -> str:
    """One of pydantic's errors: the value, and what it must be."""
    message = _REQUIRED.get(item["type"], item["msg"])
    if pattern := item.get("ctx", {}).get("pattern"):
        message = f"{_PATTERNS[pattern]} (pattern {pattern})"
    elif item["loc"][-1] in _SCALARS:
        message = "must be a number, a string, true or false"
    found = repr(item["input"])
    found = found if len(found) <= _LONGEST else f"{found[:_LONGEST]}..."
    return f"found {found}; {message[0].lower()}{message[1:]}"


def _message(item: Any, model: type[BaseModel]) -> str:
    if item["type"] == "extra_forbidden":
        known, unknown = _known_keys(model, item["loc"][:-1]), str(item["loc"][-1])
        return f"unknown key{did_you_mean(unknown, known) or '; allowed: ' + ', '.join(known)}"
    if item["type"] == "value_error":
        return str(item["msg"]).removeprefix("Value error, ")
    if item["type"] == "union_tag_invalid":
        return f"found type {item['ctx']['tag']!r}; must be one of {item['ctx']['expected_tags']}"
    return _MISSING.get(item["type"]) or refusal(item)


def _alternative(location: tuple[int | str, ...]) -> tuple[tuple[int | str, ...], int | str | None]:
    """Where a value of a union is, and which alternative was tried; the location and None outside of a union."""
    for index in reversed(range(len(location))):
        if _is_alternative(location[index]):
            return location[:index], location[index]
    return location, None


def _is_alternative(part: int | str) -> bool:
    """Whether pydantic added this part of a location: a person's key has no such part."""
    tags = (*_SCALARS, "categorical", "Preset", "RecipePreset")
    return part in tags or str(part).startswith(("list[", "tuple[", "literal[", "constrained-"))


def _known_keys(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """The keys of the table at this path of a model."""
    root = model.model_json_schema()
    definitions, node = root.get("$defs", {}), root
    for part in path:
        node = node.get("properties", {}).get(part) or node.get("items") or node.get("additionalProperties") or node
        if "discriminator" in node and part in node["discriminator"]["mapping"]:
            node = {"$ref": node["discriminator"]["mapping"][part]}
        if part in definitions:
            node = definitions[part]
        for choice in node.get("anyOf", ()):
            node = choice if "$ref" in choice else node
        if "$ref" in node:
            node = definitions[node["$ref"].rsplit("/", 1)[1]]
    return sorted(set(node.get("properties", {})) - ({"name"} if node is root else set()))
