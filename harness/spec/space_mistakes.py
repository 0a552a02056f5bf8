"""What the types of a study cannot say: names, values and conditions of the search space and of the presets."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

from pydantic import BaseModel, ValidationError

from harness.gan.hparams import ALIASES, expand
from harness.spec.mistakes import refusal
from harness.spec.params import SEARCHABLE, FixedParams, param_types
from harness.spec.space import is_active
from harness.text import did_you_mean


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
    for target in ALIASES.get(name, (name,))[:1]:
        try:
            FixedParams.model_validate({target: value})
        except ValidationError as error:
            yield f"{key}: {refusal(error.errors(include_url=False)[0])}"


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
