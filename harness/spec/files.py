"""Reading the files of search_spaces/: studies, recipes, and a report's best.toml."""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from harness.errors import HarnessError, NotFoundError, SpecError
from harness.gan.architecture import problems as architecture_problems
from harness.gan.hparams import HParams
from harness.spec.best import BestConfig
from harness.spec.mistakes import network_problems, pydantic_problems, space_problems, table
from harness.spec.recipes import Recipe
from harness.spec.study import NAME_PATTERN, StudySpec

_DATA_DEFAULTS = {"channels": 3, "crop": "square", "resample": "bicubic"}


def spaces_dir() -> Path:
    """``search_spaces/`` of the current folder, else the one beside the package (an editable install)."""
    if chosen := os.environ.get("HARNESS_SEARCH_SPACES"):
        return Path(chosen)
    here = Path("search_spaces")
    return here if here.is_dir() else Path(__file__).resolve().parents[2] / "search_spaces"


def study_names() -> list[str]:
    """The names of the study files there are."""
    return sorted(path.stem for path in spaces_dir().glob("*.toml"))


def load_study(name: str) -> StudySpec:
    """The study ``search_spaces/<name>.toml``; ``name`` may also be the path of a .toml file.

    Raises:
        NotFoundError: there is no such file.
        SpecError: the file has mistakes; the message lists all of them.
    """
    path = Path(name) if name.endswith(".toml") else spaces_dir() / f"{name}.toml"
    if not (path.is_file() if name.endswith(".toml") else name in study_names()):
        raise NotFoundError(
            f"no study {name!r} in {spaces_dir()}/", f"There are: {', '.join(study_names()) or 'none'}."
        )
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise SpecError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})", "Save it as UTF-8.") from None
    return parse_study(path.stem, text, shown_as=str(path))


def parse_study(name: str, text: str, *, shown_as: str) -> StudySpec:
    """A study from the text of its file.

    Raises:
        SpecError: the text has mistakes; the message lists all of them.
    """
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"{shown_as}: not valid TOML: {error}", "See https://toml.io for the syntax.") from None
    problems: list[str] = []
    spec: StudySpec | None = None
    if "name" in raw:
        problems.append("name: the study is named after its file; remove this key")
    raw, recipe_problems = _with_recipes(raw)
    problems += recipe_problems
    try:
        spec = StudySpec.model_validate({**raw, "name": name})
    except ValidationError as error:
        problems += pydantic_problems(error, StudySpec)
    problems += space_problems(raw)
    if spec is not None and not problems:  # a network is made of known names and values that they can have
        problems += network_problems(spec)
    if spec is not None and spec.quick is not None:
        try:
            spec.quickened()
        except ValidationError as error:
            problems += [f"quick: {problem}" for problem in pydantic_problems(error, StudySpec)]
    if problems or spec is None:
        listed = "\n".join(f"  {problem}" for problem in problems)
        raise SpecError(
            f"{shown_as}: {len(problems)} mistake{'s' * (len(problems) != 1)}\n{listed}",
            "`harness schema` prints everything that is allowed.",
        )
    return spec


def _with_recipes(raw: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The file with every preset that names a recipe filled in from it, and what stands against that."""
    presets, problems = [], []
    listed = raw.get("presets")
    for index, preset in enumerate(listed if isinstance(listed, list) else []):
        if not isinstance(preset, dict) or "recipe" not in preset:
            presets.append(preset)
            continue
        try:
            presets.append(_baseline(preset, raw))
        except (HarnessError, ValueError) as error:
            problems.append(f"presets.{index}: {str(error).splitlines()[0]}")
    return ({**raw, "presets": presets} if "presets" in raw else raw), problems


def _baseline(preset: Mapping[str, Any], raw: Mapping[str, Any]) -> dict[str, Any]:
    if others := sorted({*preset} - {"recipe", "variant"}):
        raise ValueError(f"{', '.join(others)} cannot be given beside recipe")
    recipe = load_recipe(str(preset["recipe"]))
    variant = str(preset.get("variant", recipe.default_variant))
    wanted = recipe_hparams(recipe, variant).to_dict()
    data = table(raw, "data")
    if recipe.data.image_size != data.get("image_size"):
        raise ValueError(
            f"recipe {recipe.name} is for {recipe.data.image_size} px, this study for {data.get('image_size')} px"
        )
    own = recipe.images_of(variant).model_dump(mode="json", exclude_none=True)
    other = {key: value for key, value in own.items() if data.get(key, _DATA_DEFAULTS.get(key)) != value}
    note = ", ".join(f"{key} {value}" for key, value in other.items())
    del wanted["image_size"], wanted["channels"]  # the study's
    if recipe.hparams.precision is None and recipe.variants[variant].hparams.precision is None:
        del wanted["precision"]  # as the trials that it is compared with
    return {
        "name": f"{recipe.name}-{variant}",
        "params": {},
        "overrides": wanted,
        "recipe": recipe.name,
        "variant": variant,
        "own_images": note,
    }


def recipe_hparams(recipe: Recipe, variant: str) -> HParams:
    """The configuration of a recipe's variant.

    Raises:
        NotFoundError: the recipe has no such variant.
    """
    if variant not in recipe.variants:
        raise NotFoundError(
            f"recipe {recipe.name} has no variant {variant!r}", f"There are: {', '.join(recipe.variants)}."
        )
    return recipe.configuration(variant)


def recipe_names() -> list[str]:
    """The names of the recipes there are."""
    return sorted(path.stem for path in (spaces_dir() / "recipes").glob("*.toml"))


def load_recipe(name: str) -> Recipe:
    """The recipe ``search_spaces/recipes/<name>.toml``.

    Raises:
        NotFoundError: there is no such file.
        SpecError: the file has mistakes; the message lists all of them.
    """
    folder = spaces_dir() / "recipes"
    path = folder / f"{name}.toml"
    if not re.fullmatch(NAME_PATTERN, name) or not path.is_file():
        raise NotFoundError(f"no recipe {name!r} in {folder}/", f"There are: {', '.join(recipe_names()) or 'none'}.")
    try:
        recipe = Recipe.model_validate({**tomllib.loads(path.read_text(encoding="utf-8")), "name": name})
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: not valid TOML: {error}") from None
    except ValidationError as error:
        listed = "\n".join(f"  {problem}" for problem in pydantic_problems(error, Recipe))
        raise SpecError(f"{path}: mistakes\n{listed}") from None
    found = [f"  {v}: {p}" for v in recipe.variants for p in architecture_problems(recipe.configuration(v))]
    if found:
        listed = "\n".join(found)
        raise SpecError(f"{path}: mistakes\n{listed}")
    return recipe


def load_best(path: Path) -> BestConfig:
    """A ``best.toml`` of a report.

    Raises:
        NotFoundError: there is no such file.
        SpecError: the file has mistakes; the message lists all of them.
    """
    if not path.is_file():
        raise NotFoundError(f"no configuration file {path}", "A finished study writes reports/STUDY/best.toml.")
    try:
        best = BestConfig.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: not valid TOML: {error}") from None
    except ValidationError as error:
        listed = "\n".join(f"  {problem}" for problem in pydantic_problems(error, BestConfig))
        raise SpecError(f"{path}: not a configuration as reports write it\n{listed}") from None
    hp = HParams.from_params(best.hparams.params())
    found = [f"hparams: {problem}" for problem in architecture_problems(hp)]
    for name in ("image_size", "channels"):
        of_images, of_networks = getattr(best.data, name), getattr(hp, name)
        if of_images != of_networks:
            found.append(f"hparams.{name}: found {of_networks}, where data.{name} is {of_images}")
    if found:
        listed = "\n".join(f"  {problem}" for problem in found)
        raise SpecError(f"{path}: no networks for these images\n{listed}")
    return best


def schema_json() -> str:
    """The JSON Schema of a study file, for editors (Even Better TOML and others)."""
    schema = StudySpec.model_json_schema()
    schema["properties"].pop("name")
    schema["required"].remove("name")
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return json.dumps(schema, indent=2)
