"""StudySpec: a study file as typed, validated, immutable data."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from harness.gan.hparams import HParams, digest
from harness.spec.images import DataSpec
from harness.spec.objectives import Objective
from harness.spec.params import FixedParams, Scalar, Table
from harness.spec.scoring import ScoringSpec
from harness.spec.space import Param

NAME_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,63}$"


class BudgetSpec(Table):
    """How much is trained. kimg is thousands of real images shown to the discriminator."""

    trials: int = Field(ge=1, strict=True, description="Trials to finish (COMPLETE and PRUNED are counted).")
    kimg: float = Field(gt=0, allow_inf_nan=False, description="Length of a full trial (kimg).")
    rungs: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] = Field(
        (),
        description="When a trial is scored and may be pruned, rising (kimg). The last may be the "
        "end itself: whether the final score, which costs most on small images, is still worth it.",
    )

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if list(self.rungs) != sorted(set(self.rungs)):
            raise ValueError(f"rungs must rise, found {list(self.rungs)}")
        if self.rungs and self.rungs[-1] > self.kimg:
            raise ValueError(f"rungs must not lie beyond kimg = {self.kimg}, found {self.rungs[-1]}")
        return self

    @property
    def marks(self) -> tuple[float, ...]:
        """Where a trial is scored under the rung protocol: its rungs and its end (kimg)."""
        return (*(rung for rung in self.rungs if rung < self.kimg), self.kimg)


class SamplerSpec(Table):
    """Optuna's sampler."""

    name: Literal["tpe", "random"] = "tpe"
    seed: int = Field(0, ge=0, description="Seed of the study: of its sampler and of every trial's training.")
    n_startup_trials: int = Field(10, ge=0, description="Random trials before TPE models the space.")


class PrunerSpec(Table):
    """Optuna's pruner, asked at each rung."""

    name: Literal["none", "median", "percentile", "successive_halving", "hyperband"] = "median"
    n_startup_trials: int = Field(
        4,
        ge=0,
        description="median, percentile: none is pruned at a rung before so many others came there or finished.",
    )
    percentile: float = Field(
        25.0, gt=0, lt=100, description="percentile: a trial goes on where it is among this best share of them (%)."
    )
    reduction_factor: int = Field(3, ge=2, description="successive_halving, hyperband: 1 in this many goes on.")


class Preset(Table):
    """A known configuration that is tried before the sampler chooses.

    In a file it may be ``recipe`` and ``variant`` instead; reading the file fills in the rest. A recipe is a baseline:
    it has no searched parameters, all of its values are in ``overrides``, and it is never pruned.
    """

    name: str = Field(pattern=NAME_PATTERN)
    params: dict[str, Scalar]
    overrides: dict[str, Scalar] | None = Field(None, description="Set by a recipe: all of its hyperparameters.")
    own_images: str | None = Field(None, description="Set by a recipe: how it prepares its images otherwise.")
    recipe: str | None = Field(None, description="A file of search_spaces/recipes/, without .toml.")
    variant: str | None = Field(None, description="as_coded unless given, where text and code differ.")
    arm: str | None = Field(None, pattern=NAME_PATTERN, description="Set by a plan: which configuration this trains.")
    seed: int | None = Field(None, ge=0, description="Set by a plan: the training's seed.")


class QuickSpec(Table):
    """A budget for trying a study out within minutes; its trials make a study of their own, NAME-quick."""

    trials: int = Field(ge=1, description="Trials to finish.")
    kimg: float = Field(gt=0, allow_inf_nan=False, description="Length of a full trial (kimg).")
    rungs: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] = ()
    samples: int = Field(ge=20, description="Generated images of the final score, and at most of the rung scores.")
    reference: int = Field(ge=20, description="Real images that final and rung scores compare with.")


class Plan(Table):
    """What a study without a search is for: every trial is a preset, one for each arm and training seed."""

    kind: Literal["confirm", "claims"]
    study: str = Field(pattern=NAME_PATTERN, description="The study whose images, budget and scoring it has.")
    uid: str | None = Field(None, description="Of the started search that is confirmed: not of one begun anew.")
    claims: dict[str, str] = Field(
        default_factory=dict, description="What was fixed before any training: each claim's file as canonical JSON."
    )
    rule: str | None = Field(None, description="By which rules claims are judged, in words, as fixed with them.")


class StudySpec(Table):
    """A study file. Its name is the file's."""

    name: str = Field(pattern=NAME_PATTERN, description="Taken from the file's name.")
    description: str = ""
    data: DataSpec
    fixed: FixedParams = Field(default_factory=FixedParams)
    space: dict[str, Param] = Field(min_length=1, description="The search space, a table per parameter.")
    budget: BudgetSpec
    scoring: ScoringSpec
    sampler: SamplerSpec = Field(default_factory=SamplerSpec)
    pruner: PrunerSpec = Field(default_factory=PrunerSpec)
    presets: tuple[Preset, ...] = ()
    objectives: tuple[Objective, ...] | None = Field(
        None,
        description="Search several at once, the score first: seconds (of training), precision, recall (by the final "
        "protocol's features). The report then has their Pareto front.",
    )
    quick: QuickSpec | None = Field(None, description="The budget of `harness sweep --quick`.")
    plan: Plan | None = Field(None, description="Set by `harness confirm` and `harness claims`.")

    @model_validator(mode="after")
    def _rungs_fit_pruner(self) -> Self:
        factor = self.pruner.reduction_factor
        if self.pruner.name in ("successive_halving", "hyperband"):
            rungs = self.budget.marks
            if len(rungs) < 2:
                raise ValueError(f"pruner {self.pruner.name} needs at least one rung in budget.rungs")
            for low, high in pairwise(rungs):
                if high < low * factor * (1 - 1e-9):  # 33 / 9 is less than three times 33 / 27, by rounding
                    raise ValueError(
                        f"pruner {self.pruner.name} needs rungs at least reduction_factor = {factor} times apart, "
                        f"found {low} and {high}"
                    )
        return self

    @model_validator(mode="after")
    def _objectives_differ(self) -> Self:
        names = self.objectives
        if names is not None and (len(names) < 2 or names[0] != "score" or len(set(names)) < len(names)):
            raise ValueError(
                f"objectives are score, then others, each once; found {list(names)} (leave it out for one)"
            )
        if names is not None and self.pruner.name == "hyperband":
            raise ValueError("pruner hyperband knows one objective only; use median, percentile or successive_halving")
        return self

    @model_validator(mode="after")
    def _split_exists(self) -> Self:
        for name, score in (("final", self.scoring.final), ("rung", self.scoring.rung)):
            if score.split == "held_out" and self.data.held_out is None:
                raise ValueError(f"scoring.{name}.split is held_out, but data.held_out does not hold any image out")
        return self

    def identity(self) -> dict[str, Any]:
        """All that a trial's meaning depends on: everything but the description and the number of trials."""
        content = self.model_dump(mode="json", exclude_none=True, exclude={"description": True, "quick": True})
        del content["budget"]["trials"]
        return content

    @property
    def has_rungs(self) -> bool:
        """Whether trials are scored under the rung protocol. A plan without rungs has only final scores."""
        return self.plan is None or bool(self.budget.rungs)

    @property
    def spec_hash(self) -> str:
        return digest(self.identity())

    def quickened(self) -> StudySpec:
        """The study NAME-quick with the budget of its [quick] table.

        Raises:
            ValueError: the file has no such table, or its rungs do not fit.
        """
        if self.quick is None:
            raise ValueError("it has no [quick] table")
        content = self.model_dump()
        quick = self.quick.model_dump()
        content["name"] = f"{self.name}-quick"
        content["budget"] = {key: quick[key] for key in ("trials", "kimg", "rungs")}
        content["scoring"]["final"] |= {"samples": quick["samples"], "reference": quick["reference"]}
        rung = content["scoring"]["rung"]
        rung |= {"samples": min(rung["samples"], quick["samples"]), "reference": quick["reference"]}
        return StudySpec.model_validate(content)

    def largest_batch(self) -> int:
        """The largest batch that a trial may use (images)."""
        searched = self.space.get("batch_size")
        sizes = searched.examples if searched else (self.hparams({}).batch_size,)
        return max(int(size) for size in sizes)

    def base_params(self) -> dict[str, Any]:
        """The parameters that no trial changes."""
        return {"image_size": self.data.image_size, "channels": self.data.channels, **self.fixed.params()}

    def hparams(self, params: Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> HParams:
        """The configuration that a trial with these suggested parameters (and a baseline's overrides) trains."""
        return HParams.from_params(self.base_params(), params, overrides or {})
