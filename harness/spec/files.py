"""The files of search_spaces/ and a report's best.toml: found, read, and every mistake in a sentence."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ValidationError

from harness.errors import HarnessError, NotFoundError, SpecError, first_line
from harness.gan.architecture import problems as architecture_problems
from harness.gan.hparams import HParams
from harness.home import expanded, path_from_environment
from harness.spec.fixed_study import Claim
from harness.spec.mistakes import pydantic_problems, refuse, table
from harness.spec.recipes import BestConfig, Recipe
from harness.spec.resolved import ResolvedStudy, with_budget
from harness.spec.study import HINT, StudySpec
from harness.spec.tables import examples
from harness.text import decoded, did_you_mean

Kind = Literal["study", "recipe", "claim"]
M = TypeVar("M", bound=BaseModel)

_FOLDERS: dict[Kind, str] = {"study": ".", "recipe": "recipes", "claim": "claims"}
_DEEPEST = 16  # tables and lists within one another; our own files have five
# A key of hundreds of parts.
_LONG_KEY = re.compile(r"""(?:\.[ \t]*+(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+){500}""")
_DATA_DEFAULTS = {"channels": 3, "crop": "square", "resample": "bicubic"}


def spaces_dir() -> Path:
    """``HARNESS_SEARCH_SPACES``, else ``search_spaces/`` of the current folder, else the files of the package.

    In a clone the package's folder is a link to the clone's own ``search_spaces/``.
    """
    if chosen := path_from_environment("HARNESS_SEARCH_SPACES"):
        return chosen
    here = Path("search_spaces")
    return here if here.is_dir() else shipped_dir()


def shipped_dir() -> Path:
    """The files of the package, whatever a person has elsewhere."""
    return Path(str(files("harness"))).joinpath("search_spaces").resolve()


def file_names(kind: Kind) -> list[str]:
    """The names of the files of a kind."""
    return sorted(path.stem for path in (spaces_dir() / _FOLDERS[kind]).glob("*.toml"))


def find(kind: Kind, name: str) -> Path:
    """The file of this name; a NotFoundError has the nearest name."""
    folder, known = spaces_dir() / _FOLDERS[kind], file_names(kind)
    if name not in known:
        listed = ", ".join(known) or "none"
        raise NotFoundError(f"no {kind} {name!r} in {folder}/{did_you_mean(name, known)}", f"There are: {listed}.")
    return folder / f"{name}.toml"


def described_elsewhere(spec: StudySpec) -> str:
    """The study whose description a study of the user's own images still has; empty without one.

    That is itself where the file is for CelebA, and else the one that it was copied from.
    """
    if spec.data.source == "celeba":
        return spec.name
    for name in file_names("study") if spec.description else ():
        with suppress(SpecError):  # not this study's mistakes
            other = parse(read(find("study", name)), name)
            if other.get("description") == spec.description and table(other, "data").get("source") != "folder":
                return name
    return ""


def read(path: Path) -> str:
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise SpecError(f"{path}: is not a file")
    try:
        return decoded(path.read_bytes())
    except UnicodeDecodeError as error:
        raise SpecError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})", "Save it as UTF-8.") from None
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}") from None


def parse(text: str, shown_as: str) -> dict[str, Any]:
    """The tables of a file. A byte order mark at its start is skipped."""
    try:
        if _LONG_KEY.search(text):  # takes the square of its length
            raise RecursionError
        raw = tomllib.loads(text.removeprefix("\ufeff"))
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"{shown_as}: not valid TOML: {error}", "See https://toml.io for the syntax.") from None
    except RecursionError:
        raise SpecError(f"{shown_as}: tables or lists are nested too deeply") from None
    except ValueError:  # Python refuses to read thousands of digits
        raise SpecError(f"{shown_as}: an integer has too many digits; it may have 64 bits") from None
    refuse(shown_as, _beyond_limits(raw))
    return raw


def load(path: Path, model: type[M], check: Callable[[M], Iterable[str]], **given: Any) -> M:
    """A file, with the values ``given``, as a model; ``check`` finds mistakes where keys and values are allowed."""
    raw = parse(read(path), str(path))
    try:
        loaded = model.model_validate({**raw, **given})
    except ValidationError as error:
        refuse(str(path), pydantic_problems(error, model))
        raise
    refuse(str(path), check(loaded))
    return loaded


def _beyond_limits(raw: Mapping[str, Any]) -> Iterator[str]:
    """Keys that are nested too deeply, and integers that are longer than TOML's. It does not recurse itself."""
    waiting: list[tuple[tuple[str, ...], Any]] = [((), raw)]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, dict | list) and len(path) > _DEEPEST:
            yield f"{'.'.join(path[:3])}: tables or lists are nested too deeply"
            return
        if isinstance(value, dict):
            waiting += [((*path, key), inner) for key, inner in value.items()]
        elif isinstance(value, list):
            waiting += [((*path, str(index)), inner) for index, inner in enumerate(value)]
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            yield f"{'.'.join(path)}: an integer may have 64 bits"


def load_study_file(name: str) -> ResolvedStudy:
    """The study ``search_spaces/<name>.toml``; ``name`` may also be the path of a .toml file.

    NAME-quick is the study NAME with its quick budget, unless there is a file of that name.
    """
    whole, known = name.removesuffix("-quick"), file_names("study")
    if name not in known and whole in known and whole != name:
        return with_budget(load_study_file(whole), quick=True, trials=None, kimg=None)
    given = expanded(Path(name)) if name.endswith(".toml") else None
    path = given if given and given.is_file() else find("study", name)
    return parse_study(path.stem, read(path), shown_as=str(path))


def parse_study(name: str, text: str, *, shown_as: str) -> ResolvedStudy:
    raw = parse(text, shown_as)
    mistakes = ["name: the study is named after its file; remove this key"] if "name" in raw else []
    return _resolved({**raw, "name": name}, shown_as, mistakes)


def resolve(spec: StudySpec) -> ResolvedStudy:
    """A study made in Python, with its recipes filled in."""
    return _resolved(spec.model_dump(mode="json", exclude_unset=True), f"study {spec.name}", [])


def _resolved(content: Mapping[str, Any], shown_as: str, mistakes: list[str]) -> ResolvedStudy:
    presets, unfit = _with_recipes(content)
    mistakes += unfit
    study: ResolvedStudy | None = None
    try:
        StudySpec.model_validate(content)
        study = ResolvedStudy.model_validate({**content, "presets": presets})
    except SpecError as error:
        mistakes += error.mistakes
    except ValidationError as error:  # of what a recipe filled in
        mistakes += pydantic_problems(error, ResolvedStudy)
    preset_names = [preset.name for preset in study.presets] if study else []
    mistakes += [f"presets: {name!r} is there twice" for name in {*preset_names} if preset_names.count(name) > 1]
    if study is not None and not mistakes:  # a network is made of known names and values that they can have
        mistakes += _network_problems(study)
    if study is not None and study.quick is not None:
        try:
            study.quickened()
        except ValidationError as error:
            mistakes += [f"quick: {problem}" for problem in pydantic_problems(error, ResolvedStudy)]
    refuse(shown_as, mistakes, HINT)
    assert study is not None
    return study


def _with_recipes(content: Mapping[str, Any]) -> tuple[list[Any], list[str]]:
    """A study's presets with every recipe filled in, and the recipes that do not fit."""
    presets, problems = [], []
    listed = content.get("presets")
    for index, preset in enumerate(listed if isinstance(listed, list) else []):
        if not isinstance(preset, dict) or "recipe" not in preset:
            presets.append(preset)
            continue
        try:
            presets.append(_baseline(preset, table(content, "data")))
        except HarnessError as error:
            problems.append(f"presets.{index}: {first_line(error)}")
    return presets, problems


def _baseline(preset: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    recipe = load_recipe(str(preset["recipe"]))
    variant = str(preset.get("variant") or recipe.default_variant)
    wanted = recipe.configuration(variant).to_dict()
    size = data.get("image_size")
    if recipe.data.image_size != size:
        raise SpecError(f"recipe {recipe.name} is for {recipe.data.image_size} px, this study for {size} px")
    own = recipe.images_of(variant).model_dump(mode="json", exclude_none=True)
    other = {key: value for key, value in own.items() if data.get(key, _DATA_DEFAULTS.get(key)) != value}
    del wanted["image_size"], wanted["channels"]  # the study's
    if recipe.hparams.precision is None and recipe.variants[variant].hparams.precision is None:
        del wanted["precision"]  # as the trials that it is compared with
    return {
        "name": f"{recipe.name}-{variant}",
        "params": {},
        "overrides": wanted,
        "recipe": recipe.name,
        "variant": variant,
        "own_images": ", ".join(f"{key} {value}" for key, value in other.items()),
    }


def _network_problems(study: ResolvedStudy) -> Iterator[str]:
    """Architectures that cannot be built: of the fixed values, of every single choice, and of every preset."""
    for problem in architecture_problems(study.hparams({})):
        yield f"fixed: {problem}"
        return
    for name, param in study.space.items():
        given = {key: wanted[0] if isinstance(wanted, list) else wanted for key, wanted in param.when.items()}
        for value in examples(param):
            # A value may need one of another parameter: refused only where it fits none of their single values.
            refused = architecture_problems(study.hparams({**given, name: value}))
            pairs = (
                {**given, other: choice, name: value}
                for other, other_param in study.space.items()
                if other != name and other not in given
                for choice in examples(other_param)
            )
            if refused and all(architecture_problems(study.hparams(params)) for params in pairs):
                yield f"space.{name}: {value!r} makes no network: {refused[0]}"
    for preset in study.presets:
        for problem in architecture_problems(study.hparams(preset.params, preset.overrides)):
            yield f"presets {preset.name}: {problem}"


def load_recipe(name: str) -> Recipe:
    def unbuildable(recipe: Recipe) -> list[str]:
        return [f"{v}: {p}" for v in recipe.variants for p in architecture_problems(recipe.configuration(v))]

    return load(find("recipe", name), Recipe, unbuildable, name=name)


def load_claim(name: str) -> Claim:
    return load(find("claim", name), Claim, lambda _: (), name=name)


def load_best(path: Path) -> BestConfig:
    if not path.is_file():
        raise NotFoundError(f"no configuration file {path}", "A finished study writes reports/STUDY/best.toml.")
    return load(path, BestConfig, _best_problems)


def _best_problems(best: BestConfig) -> Iterator[str]:
    hp = HParams.from_params(best.hparams.params())
    for problem in architecture_problems(hp):
        yield f"hparams: {problem}"
    for name in ("image_size", "channels"):
        of_images, of_networks = getattr(best.data, name), getattr(hp, name)
        if of_images != of_networks:
            yield f"hparams.{name}: found {of_networks}, where data.{name} is {of_images}"


def schema_json() -> str:
    """The JSON Schema of a study file, for editors (Even Better TOML and others)."""
    schema = StudySpec.model_json_schema()
    schema["properties"].pop("name")
    schema["required"].remove("name")
    schema["description"] = "A study file. Its name is the file's."
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return json.dumps(schema, indent=2)
