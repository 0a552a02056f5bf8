"""ResolvedStudy: a study as it runs, with its recipes, budget and precisions; what its trials train."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

import tomli_w
from pydantic import Field

from harness.errors import UsageError
from harness.gan.hparams import ALIASES, FIELDS, LATER, HParams, digest, expand
from harness.spec.study import Preset, StudySpec
from harness.spec.tables import NAME_PATTERN, CategoricalParam, IntParam, Param, Scalar, Table, examples, is_active

if TYPE_CHECKING:
    import optuna

# Trials before and after a change of these stay comparable: they steer the search, not what a score means.
_STEERING = ("sampler", "pruner", "presets")


class ResolvedPreset(Preset):
    """A configuration to train. A recipe's or an arm's has no searched parameters; ``overrides`` has all its values."""

    overrides: dict[str, Scalar] | None = None
    own_images: str | None = Field(None, description="How a recipe prepares its images where it differs.")
    recipe: str | None = None
    variant: str | None = None
    arm: str | None = Field(None, pattern=NAME_PATTERN, description="Which configuration of a fixed study this trains.")
    seed: int | None = Field(None, ge=0, description="Of this training in a fixed study.")


class FixedStudy(Table):
    """What a study without a search is for: every trial is a preset, one for each arm and training seed."""

    kind: Literal["confirm", "claims"]
    study: str = Field(pattern=NAME_PATTERN, description="The study whose images, budget and scoring it has.")
    uid: str | None = Field(None, description="Of the started search that is confirmed; a restarted one has another.")
    claims: dict[str, str] = Field(
        default_factory=dict, description="What was fixed before any training: each claim's file as canonical JSON."
    )
    rule: str | None = Field(None, description="By which rules claims are judged, in words, as fixed with them.")


class ResolvedStudy(StudySpec):
    """A study as it runs: what the database stores and all that is inside the harness gets."""

    presets: tuple[ResolvedPreset, ...] = ()
    plan: FixedStudy | None = None
    network_sha256: str | None = Field(None, description="Of the file that has the study's own networks.")

    def identity(self) -> dict[str, Any]:
        """All that a trial's meaning depends on: everything but the description and the number of trials."""
        content = self.model_dump(mode="json", exclude_none=True, exclude={"description": True, "quick": True})
        del content["budget"]["trials"]
        return content

    @property
    def has_rungs(self) -> bool:
        """Whether trials are scored under the rung protocol. A fixed study without rungs has only final scores."""
        return self.plan is None or bool(self.budget.rungs)

    @property
    def spec_hash(self) -> str:
        return digest(self.identity())

    def quickened(self) -> Self:
        """The study NAME-quick with the budget of its [quick] table; a ValueError where it has none or does not fit."""
        if self.quick is None:
            raise ValueError("it has no [quick] table")
        content = self.model_dump()
        quick = self.quick.model_dump()
        content |= {"name": f"{self.name}-quick", "quick": None}
        content["budget"] = {key: quick[key] for key in ("trials", "kimg", "rungs")}
        content["scoring"]["final"] |= {"samples": quick["samples"], "reference": quick["reference"]}
        rung = content["scoring"]["rung"]
        rung |= {"samples": min(rung["samples"], quick["samples"]), "reference": quick["reference"]}
        return self.model_validate(content)

    def largest_batch(self) -> int:
        """The largest batch that a trial may use (images)."""
        searched = self.space.get("batch_size")
        sizes = examples(searched) if searched else (self.hparams({}).batch_size,)
        return max(int(size) for size in sizes)

    def base_params(self) -> dict[str, Any]:
        """The parameters that no trial changes."""
        own = {"network": self.network} if self.network else {}
        return {"image_size": self.data.image_size, "channels": self.data.channels, **own, **self.fixed.params()}

    def hparams(self, params: Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> HParams:
        """The configuration that a trial with these suggested parameters (and a baseline's overrides) trains."""
        base = self.base_params()
        if overrides:  # they have all of a configuration, and name these where they are in use
            base = {name: value for name, value in base.items() if name not in LATER}
        return HParams.from_params(base, params, overrides or {})

    def typical(self) -> HParams:
        """A configuration of the study: of each parameter that is always searched, the first or lowest value."""
        return self.hparams({name: examples(param)[0] for name, param in self.space.items() if not param.when})


def suggest(trial: optuna.Trial, spec: ResolvedStudy) -> HParams:
    """Ask the trial for every active parameter, unconditional ones first, and merge them over the fixed ones."""
    params: dict[str, Any] = {}
    for conditional in (False, True):
        for name, param in spec.space.items():
            if bool(param.when) is conditional and is_active(param.when, params):
                params[name] = _suggested(trial, name, param)
    return spec.hparams(params)


def _suggested(trial: optuna.Trial, name: str, param: Param) -> Any:
    if isinstance(param, CategoricalParam):
        return trial.suggest_categorical(name, param.choices)
    if isinstance(param, IntParam):
        return trial.suggest_int(name, param.low, param.high, step=param.step, log=param.log)
    return trial.suggest_float(name, param.low, param.high, step=param.step, log=param.log)


def compared(spec: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The parameters in which a study's configurations differ, each with the conditions under which it is active.

    Those are the searched ones, and in a fixed study the hyperparameters in which its arms differ. ``spec`` is the
    study's ``identity()``.
    """
    conditions = {name: param.get("when", {}) for name, param in spec["space"].items()}
    arms = [preset["overrides"] for preset in spec.get("presets", ()) if "arm" in preset]
    differ = [name for name in FIELDS if len({arm.get(name) for arm in arms}) > 1]
    searched = expand(conditions)
    return {**conditions, **{name: {} for name in differ if name not in searched}}


def compared_params(spec: Mapping[str, Any], hparams: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration's values of the active parameters of :func:`compared`.

    An alias such as ``lr`` has one value; if the networks' values differ, its fields have theirs.
    """
    hparams = {**LATER, **hparams}  # which a configuration leaves out where it does not use them
    shared = {alias: {hparams.get(name) for name in names} for alias, names in ALIASES.items()}
    values = {**hparams, **{alias: next(iter(each)) for alias, each in shared.items() if len(each) == 1}}
    in_force = [name for name, when in compared(spec).items() if is_active(when, values)]
    shown = [each for name in in_force for each in ([name] if name in values else ALIASES.get(name, ()))]
    return {name: values[name] for name in shown}


def with_budget(spec: ResolvedStudy, *, quick: bool, trials: int | None, kimg: float | None) -> ResolvedStudy:
    """The study with a budget given by its caller, or a UsageError; rungs are scaled along with ``kimg``."""
    try:
        already = spec.quick is None and spec.name.endswith("-quick")
        spec = spec.quickened() if quick and not already else spec
    except ValueError as error:
        raise UsageError(f"study {spec.name} cannot be run with --quick: {error}") from None
    if kimg is None and trials is None:
        return spec
    whole, rungs = spec.budget.kimg, spec.budget.rungs
    kimg = whole if kimg is None else kimg
    if kimg != whole:
        rungs = tuple(kimg if rung == whole else rung * kimg / whole for rung in rungs)
    try:
        budget = {**spec.budget.model_dump(), "kimg": kimg, "rungs": rungs, "trials": trials or spec.budget.trials}
        return ResolvedStudy.model_validate({**spec.model_dump(), "budget": budget})
    except ValueError as error:
        raise UsageError(f"--kimg {kimg} does not fit this study: {error}") from None


def with_precision(spec: ResolvedStudy, *, training: str | None, rung: str | None) -> ResolvedStudy:
    """The study with these precisions; None leaves one as it is, and a searched one is not fixed."""
    fixed, scoring = spec.fixed, spec.scoring
    if training is not None and "precision" not in spec.space:
        fixed = fixed.model_copy(update={"precision": training})
    if rung is not None:
        scoring = scoring.model_copy(update={"rung": scoring.rung.model_copy(update={"precision": rung})})
    return spec.model_copy(update={"fixed": fixed, "scoring": scoring})


def with_stored_choices(spec: ResolvedStudy, stored: Mapping[str, Any]) -> ResolvedStudy:
    """The study with what its file leaves open, precisions and "all" real images, as in its stored ``identity()``."""
    training = None if spec.fixed.precision else stored["fixed"].get("precision")
    rung = None if spec.scoring.rung.precision else stored["scoring"]["rung"].get("precision")
    counted = {
        name: score.model_copy(update={"reference": stored["scoring"][name]["reference"]})
        for name, score in (("final", spec.scoring.final), ("rung", spec.scoring.rung))
        if score.reference == "all"
    }
    spec = spec.model_copy(update={"scoring": spec.scoring.model_copy(update=counted)})
    return with_precision(spec, training=training, rung=rung)


def study_toml(spec: ResolvedStudy) -> str:
    """A study as it will run, recipes filled in: the text of a study file in which no preset is a recipe."""
    content = spec.model_dump(mode="json", exclude_none=True, exclude={"name", "quick"})
    for dimension in content["space"].values():
        if not dimension["when"]:
            del dimension["when"]
    if spec.promotions:  # the other keys are other pruners'
        content["pruner"] = {"name": spec.pruner.name, "keep": [keep for _, keep in spec.promotions]}
    return f"# {spec.name}\n{tomli_w.dumps(content)}"


@dataclass(frozen=True, slots=True)
class Change:
    """One key that differs. ``sound``: old and new trials may be ranked together."""

    key: str
    old: Any
    new: Any
    sound: bool

    def __str__(self) -> str:
        return f"{self.key}: was {self.old!r}, is {self.new!r}"


def changes(old: Any, new: Any, path: tuple[str, ...] = ()) -> list[Change]:
    """The differences between two :meth:`ResolvedStudy.identity` values, leaf by leaf."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = sorted({*old, *new})
        return [change for key in keys for change in changes(old.get(key), new.get(key), (*path, key))]
    if old == new:
        return []
    sound = path[0] in _STEERING or (path[0] == "space" and path[-1] in ("low", "high") and len(path) == 3)
    return [Change(".".join(path), old, new, sound)]
