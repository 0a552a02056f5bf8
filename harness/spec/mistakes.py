"""What is wrong in a file, in sentences: what pydantic refuses, and what the types of a study cannot say."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeGuard

from pydantic import BaseModel, ValidationError

from harness.errors import SpecError
from harness.gan.hparams import ALIASES, STRIDES_PATTERN, WIDTHS_PATTERN, expand
from harness.spec.tables import FUNCTION_PATTERN, NAME_PATTERN, SEARCHABLE, FixedParams, is_active, param_types
from harness.text import did_you_mean

_MISSING = {
    "missing": "missing; it is required",
    "union_tag_not_found": 'needs type = "float", "int" or "categorical"',
}
# What a value must be, where pydantic's own message is in Python's terms.
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
    STRIDES_PATTERN: "must be auto, or 1, 2 and 4 joined by hyphens, such as 2-2-1",
    WIDTHS_PATTERN: "must be auto, or numbers joined by hyphens, such as 512-256",
}
_SCALARS = ("bool", "int", "float", "str")  # the alternatives of a value of any type
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_LONGEST = 120  # characters of a value that is repeated


def refuse(shown_as: str, mistakes: Iterable[str], hint: str = "") -> None:
    """Raise a SpecError that lists all mistakes, where there are any."""
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


def _refusal(item: Any) -> str:
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
    return _MISSING.get(item["type"]) or _refusal(item)


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


def space_problems(content: Any) -> Iterator[str]:
    """The mistakes in what a study is made from, also where its types are wrong."""
    raw = _plain(content)
    space, fixed = table(raw, "space"), table(raw, "fixed")
    for name, param in space.items():
        yield from _param_problems(name, param, space, fixed)
    presets = raw.get("presets")
    for index, preset in enumerate(presets if isinstance(presets, list) else []):
        if isinstance(preset, dict) and isinstance(preset.get("params"), dict) and "recipe" not in preset:
            yield from _preset_problems(f"presets.{index}.params", preset["params"], space)


def table(raw: Mapping[str, Any], key: str) -> dict[str, Any]:
    """A table of a file, empty where it is missing or something else."""
    content = raw.get(key)
    return content if isinstance(content, dict) else {}


def _plain(content: Any) -> Any:
    """A study's content as a file would have it: in Python it may be made of models and tuples."""
    if isinstance(content, BaseModel):
        return _plain(content.model_dump(exclude_unset=True))
    if isinstance(content, Mapping):
        return {key: _plain(value) for key, value in content.items()}
    return [_plain(value) for value in content] if isinstance(content, list | tuple) else content


def _param_problems(name: str, param: Any, space: Mapping[str, Any], fixed: Mapping[str, Any]) -> Iterator[str]:
    key = f"space.{name}"
    if name not in SEARCHABLE:
        yield f"{key}: cannot be searched{did_you_mean(name, SEARCHABLE) or '; allowed: ' + ', '.join(SEARCHABLE)}"
        return
    if not isinstance(param, dict):
        return
    for target in [t for t in ALIASES.get(name, (name,)) if t in expand(fixed)]:
        yield f"{key}: {target} is in [fixed] too; keep one of them"
    if param.get("type") in ("float", "int", "categorical") and param["type"] not in param_types(name):
        yield f"{key}.type: found {param['type']!r}; {name} takes {' or '.join(param_types(name))}"
    for clash in [other for other in ALIASES.get(name, ()) if other in space]:
        yield f"{key}: sets {clash} too, which space.{clash} already searches; keep one of them"
    values = param.get("choices", [param.get("low"), param.get("high")])
    for index, value in enumerate(values if isinstance(values, list) else []):
        if value is not None:
            yield from _value_problems(key, name, value)
        if "choices" in param and value in values[:index]:
            yield f"{key}.choices: {value!r} is listed twice"
    yield from _when_problems(key, name, param.get("when"), space)


def _preset_problems(key: str, params: Mapping[str, Any], space: Mapping[str, Any]) -> Iterator[str]:
    for name, param in space.items():
        when = param.get("when") if isinstance(param, dict) else None
        active = is_active(when, params) if isinstance(when, dict) else True
        if active and name not in params:
            yield f"{key}: {name} is missing, so it would be chosen at random"
        elif not active and name in params:
            yield f"{key}.{name}: is not searched with these other values"
    for name, value in params.items():
        if name not in space:
            yield f"{key}.{name}: is not in the search space, so no trial can have it{did_you_mean(name, space)}"
        else:
            yield from _value_problems(f"{key}.{name}", name, value)
            yield from _outside_problems(f"{key}.{name}", value, space[name])


def _value_problems(key: str, name: str, value: Any) -> Iterator[str]:
    try:
        FixedParams.model_validate({ALIASES.get(name, (name,))[0]: value})
    except ValidationError as error:
        yield f"{key}: {_refusal(error.errors(include_url=False)[0])}"


def _outside_problems(key: str, value: Any, param: Any) -> Iterator[str]:
    if not isinstance(param, dict):
        return
    choices, low, high, step = (param.get(name) for name in ("choices", "low", "high", "step"))
    if isinstance(choices, list) and value not in choices:
        yield f"{key}: found {value!r}, not one of the searched choices {choices}"
    if not (_is_finite(low) and _is_finite(high)) or not isinstance(value, int | float):
        return
    if not low <= value <= high:
        yield f"{key}: found {value!r}, outside the searched range {low} to {high}"
    elif _is_finite(step) and step > 0:
        # As Optuna tells; a value between the steps would be taken once and refused when the trial is continued.
        steps = (value - low) / step
        if not math.isfinite(steps) or abs(steps - round(steps)) >= 1e-8:
            yield f"{key}: found {value!r}, none of the searched values: {low} and every {step} from there"


def _is_finite(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)


def _when_problems(key: str, name: str, when: Any, space: Mapping[str, Any]) -> Iterator[str]:
    for parent, wanted in (when if isinstance(when, dict) else {}).items():
        parent_key = f"{key}.when.{parent}"
        parent_space = space.get(parent)
        if parent == name:
            yield f"{parent_key}: a parameter cannot depend on itself"
        elif not isinstance(parent_space, dict):
            searched = did_you_mean(parent, space) or f"; searched are: {', '.join(space)}"
            yield f"{parent_key}: is not a searched parameter{searched}"
        elif parent_space.get("when"):
            yield f"{parent_key}: depends on a condition itself; only one level of conditions is allowed"
        else:
            for value in wanted if isinstance(wanted, list) else [wanted]:
                yield from _outside_problems(parent_key, value, parent_space)
