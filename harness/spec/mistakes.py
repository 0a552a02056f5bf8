"""What is wrong with a file that a person wrote: every mistake, with key, what was found and what is allowed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from harness.gan.architecture import problems as architecture_problems
from harness.gan.hparams import ALIASES, expand
from harness.spec.params import SEARCHABLE, FixedParams, param_types
from harness.spec.space import is_active
from harness.spec.study import StudySpec

# Why pydantic's "input" is not repeated: the message already says it, or the whole table would be printed.
_SELF_EXPLAINING = {"missing", "value_error", "extra_forbidden", "union_tag_not_found"}


def pydantic_problems(error: ValidationError, model: type[BaseModel]) -> Iterator[str]:
    seen: set[str] = set()
    for item in error.errors(include_url=False):
        # Unions add the alternative that was tried ("float") to the path; a person's key has no such part.
        key = ".".join(str(part) for part in item["loc"] if not _is_alternative(part))
        if key in seen and any(_is_alternative(part) for part in item["loc"][-1:]):
            continue  # the other alternatives of a value that was reported
        seen.add(key)
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = f"unknown key; allowed: {', '.join(_siblings(model, item['loc']))}"
        elif item["type"] == "missing":
            message = "missing; it is required"
        elif item["type"] == "union_tag_not_found":
            message = 'needs type = "float", "int" or "categorical"'
        elif item["type"] not in _SELF_EXPLAINING:
            message = f"found {item['input']!r}; {message[0].lower()}{message[1:]}"
        yield f"{key or 'file'}: {message}"


def _is_alternative(part: int | str) -> bool:
    return part in ("float", "int", "str", "bool", "categorical") or str(part).startswith("list[")


def _siblings(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    schema: Any = model.model_json_schema()
    definitions = schema.get("$defs", {})
    node = schema
    for part in location[:-1]:
        if part in ("float", "int", "categorical"):
            node = definitions[{"float": "FloatParam", "int": "IntParam", "categorical": "CategoricalParam"}[str(part)]]
            continue
        node = node.get("properties", {}).get(part) or node.get("items") or node.get("additionalProperties") or {}
        if "$ref" in node:
            node = definitions[node["$ref"].rsplit("/", 1)[1]]
    return sorted(set(node.get("properties", {})) - {"name"} if node is schema else node.get("properties", {}))


def space_problems(raw: Mapping[str, Any]) -> Iterator[str]:
    """What the types cannot say: names, values and conditions of the search space and of the presets."""
    space, fixed = table(raw, "space"), table(raw, "fixed")
    for name, param in space.items():
        key = f"space.{name}"
        if name not in SEARCHABLE:
            yield f"{key}: cannot be searched; allowed: {', '.join(SEARCHABLE)}"
            continue
        if not isinstance(param, dict):
            continue
        for target in [t for t in ALIASES.get(name, (name,)) if t in expand(fixed)]:
            yield f"{key}: {target} is in [fixed] too; keep one of them"
        if param.get("type") in ("float", "int", "categorical") and param["type"] not in param_types(name):
            yield f"{key}.type: found {param['type']!r}; {name} takes {' or '.join(param_types(name))}"
        for clash in [other for other in ALIASES.get(name, ()) if other in space]:
            yield f"{key}: sets {clash} too, which space.{clash} already searches; keep one of them"
        values = param.get("choices", [param.get("low"), param.get("high")])
        for value in values if isinstance(values, list) else []:
            if value is not None:
                yield from _value_problems(key, name, value)
        yield from _when_problems(key, name, param.get("when"), space)
    yield from _preset_problems(raw.get("presets"), space)


def _preset_problems(presets: Any, space: Mapping[str, Any]) -> Iterator[str]:
    names: set[str] = set()
    for index, preset in enumerate(presets if isinstance(presets, list) else []):
        params = preset.get("params") if isinstance(preset, dict) else None
        if not isinstance(params, dict):
            continue
        name = str(preset.get("name"))
        if name in names:
            yield f"presets.{index}.name: {name!r} is used twice"
        names.add(name)
        if "recipe" in preset:
            continue  # complete in itself
        for key in [key for key in ("overrides", "own_images", "arm", "seed") if key in preset]:
            yield f"presets.{index}.{key}: is the harness's own; a preset has name and params, or recipe and variant"
        for name, param in space.items():
            when = param.get("when") if isinstance(param, dict) else None
            active = is_active(when, params) if isinstance(when, dict) else True
            if active and name not in params:
                yield f"presets.{index}.params: {name} is missing, so it would be chosen at random"
            elif not active and name in params:
                yield f"presets.{index}.params.{name}: is not searched with these other values"
        for name, value in params.items():
            key = f"presets.{index}.params.{name}"
            if name not in space:
                yield f"{key}: is not in the search space, so no trial can have it"
            else:
                yield from _value_problems(key, name, value)
                yield from _outside_problems(key, value, space[name])


def _value_problems(key: str, name: str, value: Any) -> Iterator[str]:
    for target in ALIASES.get(name, (name,))[:1]:
        try:
            FixedParams.model_validate({target: value})
        except ValidationError as error:
            item = error.errors(include_url=False)[0]
            yield f"{key}: found {value!r}; {item['msg'][0].lower()}{item['msg'][1:]}"


def _outside_problems(key: str, value: Any, param: Any) -> Iterator[str]:
    if not isinstance(param, dict):
        return
    choices, low, high = param.get("choices"), param.get("low"), param.get("high")
    if isinstance(choices, list) and value not in choices:
        yield f"{key}: found {value!r}, not one of the searched choices {choices}"
    numbers = isinstance(value, int | float) and isinstance(low, int | float) and isinstance(high, int | float)
    if numbers and not low <= value <= high:
        yield f"{key}: found {value!r}, outside the searched range {low} to {high}"
    step = param.get("step")
    if numbers and isinstance(step, int | float) and step > 0:
        # As Optuna tells; a value beside the steps would be taken once and refused when the trial is continued.
        steps = (value - low) / step
        if abs(steps - round(steps)) >= 1e-8:
            yield f"{key}: found {value!r}, none of the searched values: {low} and every {step} from there"


def _when_problems(key: str, name: str, when: Any, space: Mapping[str, Any]) -> Iterator[str]:
    for parent, wanted in (when if isinstance(when, dict) else {}).items():
        parent_key = f"{key}.when.{parent}"
        parent_space = space.get(parent)
        if parent == name:
            yield f"{parent_key}: a parameter cannot depend on itself"
        elif not isinstance(parent_space, dict):
            yield f"{parent_key}: is not a searched parameter; searched are: {', '.join(space)}"
        elif parent_space.get("when"):
            yield f"{parent_key}: depends on a condition itself; only one level of conditions is allowed"
        else:
            for value in wanted if isinstance(wanted, list) else [wanted]:
                yield from _outside_problems(parent_key, value, parent_space)


def network_problems(spec: StudySpec) -> Iterator[str]:
    """Architectures that cannot be built: of the fixed values, of every single choice, and of every preset."""
    for problem in architecture_problems(spec.hparams({})):
        yield f"fixed: {problem}"
        return
    for name, param in spec.space.items():
        given = {key: wanted[0] if isinstance(wanted, list) else wanted for key, wanted in param.when.items()}
        for value in param.examples:
            # A value may need others of the space beside it: refused only where it fits none of their single values.
            found = architecture_problems(spec.hparams({**given, name: value}))
            beside = (
                {**given, other: choice, name: value}
                for other, param_beside in spec.space.items()
                if other != name and other not in given
                for choice in param_beside.examples
            )
            if found and all(architecture_problems(spec.hparams(params)) for params in beside):
                yield f"space.{name}: {value!r} makes no network: {found[0]}"
    for preset in spec.presets:
        for problem in architecture_problems(spec.hparams(preset.params, preset.overrides)):
            yield f"presets {preset.name}: {problem}"


def table(raw: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = raw.get(key)
    return found if isinstance(found, dict) else {}
